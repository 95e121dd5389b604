"""An option that is cut off from a run is noticed here, and so is one that nobody has put into the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lib_trainer.config import field_specs
from tests.options.job_table import BASES, JOBS, WITHOUT_EFFECT, Judge, Row

if TYPE_CHECKING:
    from tests.options.seen import Lab


@pytest.fixture(scope="module")
def lab(small_diffusers_model: Any, small: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The model must come out of all the runs as it went in."""
    from lib_trainer.host.standalone.model import DiffusersModel
    from tests import support
    from tests.encoded import remembered_encoders
    from tests.options.seen import Lab
    from tests.support import differences, roots_of, snapshot
    from tests.tiny_families import build_sdxl

    before = snapshot(*roots_of(small_diffusers_model))
    with support.shallow():
        path = build_sdxl(tmp_path_factory.mktemp("xl")).path
    other = DiffusersModel.load(path, torch.device("cpu")), path
    apart = dict.fromkeys(("two encoders", "two tuned"), other)
    with support.shallow(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "UNET", support.UNET | {"in_channels": 9})
        path = support.build_tiny(tmp_path_factory.mktemp("nine")).path
    apart["inpainting"] = DiffusersModel.load(path, torch.device("cpu")), path
    with remembered_encoders():
        yield Lab(small_diffusers_model, small.path, tmp_path_factory.mktemp("lab"), BASES, apart)
    assert differences(before, snapshot(*roots_of(small_diffusers_model))) == []


def test_every_option_of_a_job_is_in_the_table() -> None:
    named = {row.option for row in JOBS} | WITHOUT_EFFECT.keys()
    assert set(field_specs()) - named == set(), "give it a value and say what must differ in a run"
    assert named - set(field_specs()) == set(), "there is no such option"


@pytest.mark.parametrize("row", JOBS, ids=lambda row: row.name)
def test_an_option_changes_the_run(row: Row, lab: Lab) -> None:
    spec = field_specs()[row.option]
    kind = BASES[row.base].get("network.kind", "lora")
    assert row.option == "network.kind" or kind in spec.kinds, "the row's base does not read this option"
    together = [one for one in JOBS if row.run and (one.base, one.run) == (row.base, row.run)]
    changes = {one.option: one.value for one in [*together, row]}
    now, before = row.sees(lab.run(row.base, changes)), row.sees(lab.base(row.base))
    if isinstance(row.expected, Judge):
        assert row.expected.holds(now, before), f"{row.expected.what} is expected: {now} beside {before}"
    else:
        assert now == row.expected
        assert before != row.expected, "the base shows it too, so this row proves nothing"


@pytest.mark.parametrize("base", ["lora", "embedding", "pivotal", "hypernetwork", "checkpoint", "difference"])
def test_what_a_kind_does_not_read_changes_nothing(base: str, lab: Lab) -> None:
    """The form hides these options, so a value that is left in one must not be felt."""
    kind = BASES[base].get("network.kind", "lora")
    unread = {path for path, spec in field_specs().items() if kind not in spec.kinds}
    changes = {row.option: row.value for row in JOBS if row.option in unread}
    assert changes.keys() == unread
    assert lab.run(base, changes).essence() == lab.base(base).essence()


def test_the_command_line_trains_the_checkpoint_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one option that no run reads."""
    from lib_trainer.cli import main as cli

    assert set(WITHOUT_EFFECT) == {"model.checkpoint"}
    path = tmp_path / "job.toml"
    path.write_text("model.checkpoint = 'mine.safetensors'\n", encoding="utf-8")
    seen: list[Any] = []
    monkeypatch.setattr(cli, "train", lambda job, desk: seen.append(desk.host.checkpoint) or cli.DONE)
    assert cli.main(["train", str(path)]) == cli.DONE
    assert cli.main(["train", str(path), "--checkpoint", str(tmp_path / "other")]) == cli.DONE
    assert seen == [tmp_path / "mine.safetensors", tmp_path / "other"]
