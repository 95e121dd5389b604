"""Previews of several prompts: each line with its own settings, from held seeds, as files and one grid that grows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_trainer.config import from_values, load_job
from lib_trainer.config.files import from_mapping
from lib_trainer.files import write_atomically
from lib_trainer.grids import GAP
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.kinds.registry import kind_of
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import ConfigError, TrainerError
from lib_trainer.training import preview_sheet
from lib_trainer.training.preview_prompts import labels, preview_requests, sizes, wanted
from lib_trainer.training.preview_sheet import PreviewSheet
from lib_trainer.work import events as ev
from tests.training.watched import Watched, at_step

TWO = "a disc --w 64 --h 128 --d 7 --n dull --l 3.5 --s 2\n\n  a   zorb  "
LOOKING = {"preview__prompt": TWO, "preview__steps": 1, "preview__every": 2, "preview__at_start": True}


def asked(prompt: str, **options: Any) -> tuple[PreviewRequest, ...]:
    job = from_values({"preview.prompt": prompt, **{f"preview.{name}": value for name, value in options.items()}})
    return preview_requests(job, kind_of(job))


def test_a_line_is_a_prompt_and_what_follows_it_is_its_own() -> None:
    one, other = asked(TWO, negative_prompt="blurred", seed=3, width=256)
    usual = PreviewRequest("a zorb", "blurred", 256, 512, seed=3)
    assert other == usual
    assert one == PreviewRequest("a disc", "dull", 64, 128, 2, 3.5, "", 7)
    (long,) = asked('a cat --negative_prompt "a dog, wet" --cfg_scale 5 --sampler_name Euler --steps 9 --seed 2')
    assert long == PreviewRequest("a cat", "a dog, wet", 512, 512, 9, 5.0, "Euler", 2)
    assert asked('--prompt "a cat -- a dog" --seed 4') == (PreviewRequest("a cat -- a dog", seed=4),)
    assert [one.prompt for one in asked("")] == [""]
    job = from_values({"preview.prompt": TWO, "dataset.width": 320})
    assert sizes(job) == ((64, 128), (320, 512)) and labels(job, kind_of(job))[1] == "a zorb"
    assert sizes(from_values({"preview.prompt": "a --w wide"})) == ((512, 512),), "a line that is being typed"


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a cat\na dog --x 5", "'a dog --x 5': --x is no setting of a picture"),
        ("a cat --w wide", "--w is 'wide', and must be a whole number from 0 to 4096"),
        ("a cat --s 0", "must be a whole number from 1 to 150"),
        ("a cat --d", "--d is ''"),
        ("--w 64", "no prompt before them"),
        ("a cat --w 70", "width = 70 is not 0 or a multiple of 8 from 64 on: take 64"),
        ("a cat --ss Nobody", "line 'a cat --ss Nobody': the sampler 'Nobody' is not known here"),
    ],
)
def test_a_line_that_says_what_there_is_not_is_refused(
    watched: Watched, pictures: Path, prompt: str, told: str
) -> None:
    with pytest.raises(TrainerError) as caught:
        watched.run(pictures, preview__prompt=f"a good one\n{prompt}")
    assert told in str(caught.value) and caught.value.field == "preview.prompt"


def test_all_lines_that_are_wrong_are_told(watched: Watched, pictures: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        watched.run(pictures, preview__prompt="a --x 1\na --w 70\na --s 999")
    assert len(caught.value.problems) == 3


def test_a_grid_grows_by_a_row_of_pictures_from_held_seeds(watched: Watched, pictures: Path) -> None:
    drawn: list[PreviewRequest] = []
    grids: list[tuple[int, int]] = []
    real = watched.host.preview

    def preview(request: PreviewRequest) -> Image.Image:
        drawn.append(request)
        return real(request)

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.PreviewGrid):
            with Image.open(event.path) as grid:
                grids.append(grid.size)

    watched.host.preview, watched.react = preview, look  # type: ignore[method-assign]
    view = watched.run(pictures, training__max_steps=4, optimizer__unet_lr=0.02, **LOOKING)
    made = watched.of(ev.PreviewMade)
    assert [(one.step, one.number, one.count, one.image.size) for one in made] == [
        (step, number, 2, size) for step in (0, 2, 4) for number, size in ((1, (64, 128)), (2, (64, 64)))
    ]
    assert drawn[:2] == drawn[2:4] == drawn[4:] and [one.seed for one in drawn[:2]] == [7, 1], "the seeds are held"
    assert made[0].image.tobytes() != made[2].image.tobytes() != made[4].image.tobytes(), "what is learned is seen"
    folder = watched.host.root / "previews" / "learned"
    single = [f"step{step:08d}-{number}.png" for step in (0, 2, 4) for number in (1, 2)]
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", *single]
    with Image.open(folder / single[2]) as file:
        assert file.tobytes() == made[2].image.tobytes()
    heights = [height for _, height in grids]
    assert (
        len({width for width, _ in grids}) == 1 and [b - a for a, b in itertools.pairwise(heights)] == [128 + GAP] * 2
    )
    with Image.open(folder / "grid.png") as grid:
        assert contains(grid, [one.image for one in made])
    assert view.grid == folder / "grid.png" and view.grids == 3 and [one.column for one in view.previews] == [1, 2] * 3


def test_pictures_on_the_way_change_no_bit(watched: Watched, pictures: Path) -> None:
    rates = {"training__max_steps": 3, "optimizer__unet_lr": 0.02, "network__dropout": 0.3}
    assert watched.run(pictures, output__name="plain", **rates).state == "finished"
    assert watched.run(pictures, **rates, **LOOKING | {"preview__every": 1}).state == "finished"
    plain, seen = watched.tensors("plain.safetensors"), watched.tensors()
    assert plain.keys() == seen.keys() and all(torch.equal(plain[name], seen[name]) for name in plain)


def test_one_prompt_that_fails_costs_its_own_picture(watched: Watched, pictures: Path) -> None:
    view = watched.run(pictures, preview__prompt="a <lora:nowhere:1>\na disc", preview__every=1, preview__steps=1)
    assert view.state == "finished"
    made = watched.of(ev.PreviewMade)
    assert made and {one.number for one in made} == {2}
    told = [str(one.text) for one in watched.of(ev.Message) if one.level == "warning"]
    assert len(told) == len(made) and "nowhere" in told[0], told


def test_a_stop_ends_the_pictures_that_are_not_begun(watched: Watched, pictures: Path) -> None:
    real = watched.host.preview

    def preview(request: PreviewRequest) -> Image.Image:
        watched.runner.stop()
        return real(request)

    watched.host.preview = preview  # type: ignore[method-assign]
    view = watched.run(pictures, training__max_steps=4, **LOOKING | {"preview__at_start": False})
    assert view.state == "stopped" and [one.number for one in watched.of(ev.PreviewMade)] == [1]


def test_a_disk_that_takes_no_pictures_harms_nothing(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview_sheet, "write_atomically", full)
    view = watched.run(pictures, training__max_steps=2, **LOOKING)
    told = [str(one.text) for one in watched.of(ev.Message) if one.level == "warning"]
    assert view.state == "finished" and len(watched.of(ev.PreviewMade)) == 4 and view.grid is None
    assert len(told) == 1 and "No space left on device" in told[0] and "page" not in told[0], "a terminal has none"


def test_a_name_that_is_drawn_again_keeps_what_is_there(watched: Watched, pictures: Path) -> None:
    def draws() -> None:
        watched.react = at_step(1, watched.runner.sample)
        watched.run(pictures, training__max_steps=1, preview__steps=1, output__existing="replace")

    draws()
    first = watched.host.root / "previews" / "learned" / "step00000001-1.png"
    before = first.read_bytes()
    draws()
    assert first.read_bytes() == before
    assert (watched.host.root / "previews" / "learned (2)" / "step00000001-1.png").is_file()
    assert not first.with_name("grid.png").exists(), "one picture is no grid"


def test_a_grid_of_a_long_run_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_sheet, "MOST_ROWS", 4)
    monkeypatch.setattr(preview_sheet, "MOST_PIXELS", 3 * 64 * 64)
    written: list[str] = []
    monkeypatch.setattr(preview_sheet, "write_atomically", lambda path, data: written.append(path.name))
    shown: list[list[str]] = []

    def painted(columns: list[str], rows: list[str], cells: list[list[Image.Image]]) -> Image.Image:
        shown.append(rows)
        return cells[0][0]

    monkeypatch.setattr(preview_sheet, "painted", painted)
    sheet = PreviewSheet(tmp_path, ["a"])
    for step in range(1, 13):
        sheet.put(step, [Image.new("RGB", (64, 64), (step, 0, 0))])
    assert all(len(rows) <= 5 and rows[0] == "step 1" for rows in shown)
    assert [rows[-1] for rows in shown] == [f"step {number}" for number in range(2, 13)]
    held = [picture for _, row in [*sheet._rows, sheet._last or (0, [])] for picture in row if picture]
    assert {picture.size for picture in held} == {(32, 32)}
    assert written.count("grid.png") == 11 and len(set(written)) == 13


def test_an_old_job_files_lines_stay_one_prompt(tmp_path: Path) -> None:
    text = 'version = 2\n[preview]\nprompt = "a zorb,\\n red"\n'
    write_atomically(tmp_path / "old.toml", text.encode())
    assert load_job(tmp_path / "old.toml").preview.prompt == "a zorb, red"
    write_atomically(tmp_path / "new.toml", text.replace("2", "3").encode())
    assert load_job(tmp_path / "new.toml").preview.prompt == "a zorb,\n red"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("girl --n o bad", "girl -- n o bad"),
        ("--no-ai, score_9 --w 512", "-- no-ai, score_9 -- w 512"),
        ("a--b -- c --1 (--d)", "a--b -- c --1 (--d)"),
    ],
)
def test_dashes_of_an_old_job_file_are_no_settings(old: str, new: str) -> None:
    """They were a part of the prompt, whose tokens stay the same."""
    (one,) = wanted(from_mapping({"version": 2, "preview": {"prompt": old}}))
    assert one.prompt == new and not one.own
    tokens = load_tokenizer()
    assert tokens(old)["input_ids"] == tokens(new)["input_ids"]


def contains(sheet: Image.Image, pictures: list[Image.Image]) -> bool:
    """Whether each picture is somewhere in a sheet, to the bit."""
    whole = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).reshape(sheet.height, sheet.width, 3)

    def found(picture: Image.Image) -> bool:
        wide, high = picture.size
        part = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(high, wide, 3)
        rows = (whole == part[0, 0]).all(-1).nonzero().tolist()
        return any(torch.equal(whole[y : y + high, x : x + wide], part) for y, x in rows)

    return all(found(picture) for picture in pictures)
