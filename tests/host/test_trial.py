"""Merges and LoRAs tried on a loaded model: pictures are those of the file, and all comes back bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_trainer.families.open_clip import InFile
from lib_trainer.host.exchanged import Exchanged
from lib_trainer.host.standalone.host import StandaloneHost, StandaloneLease
from lib_trainer.networks.formats.lora_file import write_lora
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import OwnParameter, PreviewRequest
from lib_trainer.refusals import ConfigError, ModelError, Sentence, TrainerError
from lib_trainer.toolbox import modes
from lib_trainer.toolbox.desk import Done, Prepared, ToolDesk
from lib_trainer.toolbox.lora_options import RepairSettings
from lib_trainer.toolbox.merge import prepare
from lib_trainer.toolbox.merge_settings import MergeSettings
from lib_trainer.toolbox.progress import Progress, StopAsked
from lib_trainer.toolbox.trial import end_trial, prepare_block_grid, prepare_grid, prepare_put_back, prepare_try
from lib_trainer.toolbox.trial_settings import BlockGridSettings, GridSettings

CPU = torch.device("cpu")
SMALL = {"width": 64, "height": 64, "steps": 2}
REQUEST = PreviewRequest("a disc", **SMALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The loaded checkpoint, another one, and one with a NaN in its last block."""
    folder = tmp_path_factory.mktemp("trial")
    draw = torch.Generator().manual_seed(3)
    own = load_file(tiny.path)
    other = {
        name: one + 0.3 * one.float().std().nan_to_num() * torch.randn(one.shape, generator=draw)
        if one.is_floating_point() and one.numel() > 1 else one
        for name, one in own.items()
    }  # fmt: skip
    broken = dict(other)
    broken["model.diffusion_model.out.2.weight"] = torch.full_like(own["model.diffusion_model.out.2.weight"], torch.nan)
    save_file({name: one.to(own[name].dtype).contiguous() for name, one in other.items()}, folder / "other.safetensors")
    save_file({name: one.to(own[name].dtype).contiguous() for name, one in broken.items()}, folder / "nan.safetensors")
    return {"own": tiny.path, "other": folder / "other.safetensors", "nan": folder / "nan.safetensors"}


@pytest.fixture(scope="module")
def shared_host(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    return StandaloneHost(files["own"], tmp_path_factory.mktemp("host"), CPU)


@pytest.fixture
def host(shared_host: StandaloneHost) -> Iterator[StandaloneHost]:
    """It is as it was after every test."""
    before = weights(shared_host)
    try:
        yield shared_host
    finally:
        exchanged, after = shared_host.exchanged, weights(shared_host)
        with shared_host.lease("the next test"):
            pass
    assert exchanged is None
    assert all(before[name].equal(after[name]) for name in before)


def weights(host: StandaloneHost) -> dict[str, torch.Tensor]:
    return {one.key: getattr(one.owner, one.name).detach().clone() for one in host.model().own_parameters()}


def farthest(one: bytes, other: bytes) -> int:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def merge(files: dict[str, Path], b: str = "other", **changes: Any) -> MergeSettings:
    return MergeSettings(**{"a": str(files["own"]), "b": str(files[b]), "weight": 0.4} | changes)


def test_a_trial_ends_with_the_page_but_not_under_a_job_on_the_model(
    host: StandaloneHost, files: dict[str, Path]
) -> None:
    before, desk, over = weights(host), ToolDesk(), threading.Event()
    end_trial(desk, host)  # there is none
    prepare_try(merge(files), host).work(Progress())

    def waits(progress: Progress) -> Done:
        over.wait(60)
        return Done(Sentence("trial.put_back"))

    desk.on_the_model("grid", lambda: Prepared((), waits))
    end_trial(desk, host)
    assert host.exchanged is not None
    over.set()
    desk.wait(60)
    over.clear()
    desk.work("clean", lambda: Prepared((), waits), None)
    assert desk.running, "on files alone"
    end_trial(desk, host)
    assert host.exchanged is None
    over.set()
    desk.wait(60)
    after = weights(host)
    assert host.exchanged is None and all(before[name].equal(after[name]) for name in before)


def test_a_tried_merge_draws_what_its_file_draws(
    host: StandaloneHost, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "AT_ONCE", 1 << 10)  # in pieces
    plain = host.preview(REQUEST).tobytes()
    settings = merge(files, output=str(files["own"].parent / "tried"), blocks="GRAD_V")
    prepared = prepare_try(settings, host)
    assert host.exchanged is None and "until it is put back" in str(prepared.lines[-1])
    prepared.work(Progress())
    assert host.exchanged is not None and "draws as a merge of" in str(host.exchanged)
    tried, held = host.preview(REQUEST).tobytes(), weights(host)
    # the text encoder's description lies beside the checkpoint
    saved = StandaloneHost(prepare(settings).work(Progress()).path, tmp_path, CPU)
    assert weights(saved).keys() == held.keys()
    assert all(held[name].equal(one) for name, one in weights(saved).items())
    drawn = saved.preview(REQUEST).tobytes()
    assert farthest(tried, drawn) <= 2 < farthest(drawn, plain), "products round by where in memory weights lie"
    prepare_put_back(host).work(Progress())
    assert host.preview(REQUEST).tobytes() == plain
    with pytest.raises(ConfigError, match="nothing to put back"):
        prepare_put_back(host)


def test_a_lease_and_another_trial_put_back_first(host: StandaloneHost, files: dict[str, Path]) -> None:
    before = weights(host)
    prepare_try(merge(files), host).work(Progress())
    prepare_try(merge(files, weight=0.0), host).work(Progress())
    assert all(before[name].equal(one) for name, one in weights(host).items()), "a merge at 0 is the first model"
    prepare_try(merge(files, weight=1.0), host).work(Progress())
    with host.lease("a training"):
        assert host.exchanged is None
        assert all(before[name].equal(one) for name, one in weights(host).items())


def test_all_else_is_undone_although_numbers_cannot_be_put_back() -> None:
    layer, sound, undone = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False), list[str]()
    before = sound.weight.detach().clone()
    exchange = Exchanged(Sentence("system.says", reason="a trial"))
    exchange.around.callback(undone.append, "around")
    for name, one in (("a", layer), ("b", sound)):
        exchange.write(OwnParameter(InFile(f"{name}.weight"), one, "weight", "unet"), torch.ones(2, 2))
    layer.weight.data = torch.ones(3, 3)  # another program has put its own there
    with pytest.raises(ModelError, match="load the checkpoint again"):
        exchange.put_back()
    assert undone == ["around"] and not exchange.active
    assert sound.weight.equal(before), "what comes after the one that failed"


def test_what_a_prompt_has_put_in_is_taken_out_although_no_number_was_changed() -> None:
    taken_out: list[str] = []
    exchange = Exchanged(Sentence("trial.put_back"), lambda: taken_out.append("networks"))
    exchange.put_back()
    exchange.put_back()
    assert taken_out == ["networks"]


@pytest.mark.parametrize("ends", ["stop", "nan"])
def test_a_trial_that_ends_early_leaves_nothing(host: StandaloneHost, files: dict[str, Path], ends: str) -> None:
    progress = Progress()
    if ends == "stop":
        seen: list[Any] = []

        def emit(event: Any) -> None:
            seen.append(event)
            if len(seen) == 40:
                raise StopAsked

        progress = Progress(None, emit)
    with pytest.raises((StopAsked, ModelError)):
        prepare_try(merge(files, "nan" if ends == "nan" else "other"), host).work(progress)


def test_a_grid_of_weights_and_blocks(host: StandaloneHost, files: dict[str, Path]) -> None:
    asked = GridSettings(prompt="a disc", weights="0, 1", rows="ALL_A\nALL_B", picture_seed=1, **SMALL)
    done = prepare_grid(merge(files), asked, host).work(Progress())
    assert done.path is not None
    with Image.open(done.path) as sheet:
        assert sheet.width > 2 * 64 and sheet.height > 2 * 64
        cells = sheet.crop((sheet.width - 140, sheet.height - 140, sheet.width, sheet.height))
        first, last = cells.crop((0, 0, 64, 64)), cells.crop((70, 70, 134, 134))
    plain = host.preview(REQUEST)
    assert first.tobytes() == plain.tobytes() != last.tobytes(), "ALL_A at 0 is the loaded model"


def test_an_interrupted_picture_is_no_grid(
    host: StandaloneHost, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one picture: the last is cut short as any other."""

    def preview(request: PreviewRequest) -> Image.Image:
        monkeypatch.setattr(StandaloneLease, "interrupted", "Interrupt")
        return Image.new("RGB", (request.width, request.height))

    monkeypatch.setattr(host, "preview", preview)
    before = set(host.root.rglob("*.png"))
    prepared = prepare_grid(merge(files), GridSettings(prompt="a disc", weights="0.5", **SMALL), host)
    with pytest.raises(StopAsked):
        prepared.work(Progress())
    assert set(host.root.rglob("*.png")) == before


def test_blocks_of_a_lora_switched_off_and_alone(host: StandaloneHost, files: dict[str, Path]) -> None:
    model = host.model()
    draw = torch.Generator().manual_seed(1)
    wanted = ("input_1", "output_5")
    targets = [one for one in model.adaptable_modules() if one.group == "transformer" and one.block in wanted]
    network = LoraNetwork.create(targets, 4, 4, draw)
    with torch.no_grad():
        for adapter in network:
            adapter.up.normal_(0, 0.3, generator=draw)
    path = host.lora_folder() / "two.safetensors"
    write_lora(path, network.tensors(torch.float32), {}, overwrite=True)
    asked = BlockGridSettings(prompt="a disc", **SMALL)
    prepared = prepare_block_grid(RepairSettings(lora=str(path)), asked, host)
    assert "6 pictures" in str(prepared.lines[1]) and len(prepared.lines) == 2
    own = RepairSettings(lora=f"{path}:lbw=nonsense", blocks="output_5=0", text="drop", others=("b",))
    told = prepare_block_grid(own, asked, host).lines
    assert "text, others have no part" in str(told[2]), "what stands behind the file is replaced, as in a repair"
    with pytest.raises(ConfigError, match="blocks"):
        prepare_block_grid(RepairSettings(lora=str(path), blocks="1, 2"), asked, host)
    done = prepared.work(Progress())
    assert done.path is not None
    with Image.open(done.path) as sheet:
        left, top = sheet.width - 2 * 70, sheet.height - 3 * 70
        corners = [(left + 70 * column, top + 70 * row) for row in range(3) for column in range(2)]
        cells = [sheet.crop((x, y, x + 64, y + 64)).tobytes() for x, y in corners]
    whole, none, off_1, alone_1, off_5, alone_5 = cells
    assert none == host.preview(REQUEST).tobytes()
    assert off_1 == alone_5 and off_5 == alone_1, "of two blocks, without the one is the other alone"
    assert len({whole, none, off_1, alone_1}) == 4


def test_what_cannot_be_tried_is_said_first(host: StandaloneHost, files: dict[str, Path]) -> None:
    refused: list[tuple[Any, str]] = [
        (lambda: prepare_grid(merge(files), GridSettings(), host), "no prompt"),
        (lambda: prepare_grid(MergeSettings(chain="x.toml"), GridSettings(prompt="a"), host), "leave chain empty"),
        (lambda: prepare_grid(merge(files, mode="average"), GridSettings(prompt="a"), host), "choose another mode"),
        (lambda: prepare_grid(merge(files), GridSettings(prompt="a", weights="x"), host), "are no numbers"),
        (lambda: prepare_grid(merge(files), GridSettings(prompt="a", width=100), host), "no multiple of 8"),
        (lambda: prepare_block_grid(RepairSettings(), BlockGridSettings(prompt="a"), host), "No file is named"),
    ]
    for prepare_it, words in refused:
        with pytest.raises(TrainerError, match=words):
            prepare_it()
