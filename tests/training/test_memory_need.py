"""Whether a job fits, what is said where it does not, and that nothing is refused for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_trainer.config import JobConfig, from_values, to_values
from lib_trainer.config.base import KINDS
from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.latent_store import MemoryStore
from lib_trainer.dataset.masks import Masks
from lib_trainer.dataset.scan import scan_folder
from lib_trainer.families.family import Family
from lib_trainer.host.held import Holdable
from lib_trainer.ports import HeldPart, TrainingState
from lib_trainer.training import memory_need, plan
from lib_trainer.training import memory_table as forecasts
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.forecast import Place, activations, forecast, foreseen, learned_numbers
from lib_trainer.training.memory_need import GIB, Looked, Outlook, outlook, remedies_for, unknown
from lib_trainer.training.memory_table import Table, read_table, table_for
from lib_trainer.training.precision import DTYPES
from lib_trainer.training.sizes import holes_of, sizer_of, variations_of
from lib_trainer.work import events as ev
from tests.support import ModelHost, Tiny, build_tiny, draw_pictures, make_job
from tests.training.watched import Watched

TINY = read_table(Path(__file__).with_name("memory_tiny.json"))
SD1 = read_table(forecasts.TABLES / "sd1.json")
CARD = Place(torch.device("cuda", 0), torch.bfloat16, dict.fromkeys(SD1.weights, torch.float16))
PARTS = {part: HeldPart(weights.all, torch.float16) for part, weights in SD1.weights.items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Of the shape that the table was made with."""
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")
    return build_tiny(tmp_path_factory.mktemp("deep"))


@pytest.fixture(scope="module")
def diffusers_model(tiny: Tiny) -> Any:
    return tiny.in_diffusers()


def _job(pictures: Path, **changes: Any) -> JobConfig:
    usual = {"dataset__width": 512, "dataset__height": 512, "training__precision": "bf16", "network__rank": 32}
    return make_job(pictures, **usual | changes)


@pytest.mark.parametrize(
    ("room", "changes"),
    [
        (8, {"training__batch_size": 8}),
        (6, {"network__kind": "loha", "dataset__width": 1024, "dataset__height": 1024}),
        (4, {"training__batch_size": 2, "dataset__width": 768, "dataset__height": 768, "preview__prompt": "a"}),
        (16, {"network__kind": "checkpoint", "optimizer__ema": True, "finetune__text_encoder_lr": 1e-6}),
        (8, {"network__kind": "checkpoint"}),
        (3, {"network__kind": "lora", "training__batch_size": 16, "dataset__width": 1024, "dataset__height": 1024}),
    ],
)
def test_the_change_that_is_named_makes_the_job_fit(pictures: Path, room: int, changes: dict[str, Any]) -> None:
    _remedied(_job(pictures, **changes), SD1, CARD, room)


def _remedied(job: JobConfig, table: Table, place: Place, room: int) -> None:
    """Each change that is named makes the job fit into so many GiB."""
    assert forecast(job, table, place).needed > room * GIB
    remedies = remedies_for(job, table, place, room * GIB)
    assert remedies
    for remedy in remedies:
        changed = from_values(to_values(job) | dict(remedy.changes))
        assert forecast(changed, table, place).needed == remedy.total <= room * GIB
        assert all(path in str(remedy.told()) for path in remedy.changes)


def test_a_preview_that_is_too_large_can_be_left_out(pictures: Path) -> None:
    job = _job(pictures, preview__prompt="a", preview__every=1, preview__width=2048, preview__height=2048)
    room = forecast(_job(pictures), SD1, CARD).needed
    assert forecast(job, SD1, CARD).needed > room
    remedies = remedies_for(job, SD1, CARD, room)
    assert {"preview.prompt": ""} in [remedy.changes for remedy in remedies]
    assert "leave preview.prompt empty" in " ".join(str(remedy.told()) for remedy in remedies)


def test_where_nothing_helps_nothing_is_promised(pictures: Path) -> None:
    assert remedies_for(_job(pictures), SD1, CARD, GIB // 2) == []


def test_more_of_anything_needs_more(pictures: Path) -> None:
    """By the arithmetic that is known: four bytes of a copy, of a gradient and of each moment."""

    def need(**changes: Any) -> float:
        return forecast(_job(pictures, network__kind="checkpoint", **changes), SD1, CARD).needed / GIB

    base, unet, text = need(), SD1.weights["unet"].all / GIB, SD1.weights["te1"].all / GIB
    assert need(optimizer__ema=True) - base == pytest.approx(4 * unet, rel=1e-3)
    assert need(optimizer__name="AdamW8bit") - base == pytest.approx(-(8 - 2.06) * unet, rel=1e-3)
    assert 12 * text < need(finetune__text_encoder_lr=1e-6) - base < 24 * text
    assert need(training__batch_size=4) - need(training__batch_size=2) == pytest.approx(2 * 1.1, rel=0.15)
    assert need(training__batch_size=4) < 19, "18.8 GiB were counted on an RTX 4090, which has 24"
    assert need(training__batch_size=4, training__gradient_checkpointing=True) < need(training__batch_size=2)


def test_a_text_encoder_without_a_layer_that_nobody_reads_is_the_same_model() -> None:
    """Of SD 2.x a file has 24 layers and a diffusers folder 23. By its UNet alone it would be SD 1.x."""
    own = {part: weights.all for part, weights in forecasts.tables()["sd2"].weights.items()}
    layer = own["te1"] // 24
    for encoder in (own["te1"], own["te1"] + layer, own["te1"] - layer):
        assert table_for(own | {"te1": encoder}) is forecasts.tables()["sd2"]
    assert table_for(own | {"te1": SD1.weights["te1"].all}) is forecasts.tables()["sd1"]
    assert table_for(own | {"te1": own["te1"] * 11 // 10}) is None
    assert table_for({"te1": own["te1"]}) is None and table_for(own | {"unet": own["unet"] * 102 // 100}) is None


def test_a_memory_that_is_all_there_is_holds_converted_copies_too(pictures: Path) -> None:
    place = Place(torch.device("cpu"), torch.bfloat16, dict.fromkeys(SD1.weights, torch.float16))
    job = _job(pictures, preview__prompt="a", preview__every=1)
    held = {need.phase: need.items["weights"] for need in forecast(job, SD1, place).phases}
    unet, text = (2 * SD1.weights[part].products + 4 * SD1.weights[part].others for part in ("unet", "te1"))
    host = 2 * sum(weights.all for weights in SD1.weights.values())
    assert held == {"encoding": host + text, "training": host + text + unet, "preview": host}


def test_a_second_term_adds_to_gradients_that_are_there(pictures: Path) -> None:
    """Each of accumulation and preservation makes one; of a LoRA they are as large as what learns."""
    gradients = {}
    for name, changes in (
        ("none", {}),
        ("accumulated", {"training__gradient_accumulation": 2}),
        ("preserved", {"preserve__weight": 0.5}),
    ):
        job = _job(pictures, **changes)
        gradients[name] = next(n.items["gradients"] for n in forecast(job, SD1, CARD).phases if n.phase == "training")
        assert all(need.items.get("EMA", 0) == 0 for need in forecast(job, SD1, CARD).phases)
    learned = 4 * sum(learned_numbers(_job(pictures), SD1).values())
    assert gradients["none"] == 0 and gradients["accumulated"] == gradients["preserved"] > 0.4 * learned


@pytest.mark.parametrize(
    ("kind", "recomputed", "measured"),
    [
        ("embedding", False, 27546), ("embedding", True, 3746), ("hypernetwork", False, 27547), ("lora", False, 17450),
        ("locon", False, 0),
    ],
)  # fmt: skip
def test_convolutions_in_8_bits_keep_nothing_of_what_they_are_given(
    pictures: Path, kind: str, recomputed: bool, measured: int
) -> None:
    """Bytes for each cell by which steps of four pictures were measured to take less than with wide weights
    (`bench.memory`). Where a layer has an adapter, that keeps the same."""
    own = {"network__kind": kind, "training__gradient_checkpointing": recomputed}
    job = _job(pictures, training__batch_size=4, **own)
    eight = _job(pictures, training__batch_size=4, training__weights="fp8", **own)
    less = (activations(job, SD1, CARD) - activations(eight, SD1, CARD)) / (4 * 64 * 64)
    assert less == pytest.approx(measured, rel=0.03)


def test_a_preview_needs_more_the_larger_it_is(pictures: Path) -> None:
    """Its parts are what one picture is drawn and decoded in, and the weights as the host holds them."""

    def preview(**changes: Any) -> Any:
        job = _job(pictures, preview__prompt="a", **changes)
        return next((need.items for need in forecast(job, SD1, CARD).phases if need.phase == "preview"), None)

    small, large = (preview(preview__every=1, preview__width=side, preview__height=side) for side in (512, 1024))
    assert preview(preview__every=0) is None
    assert small["weights"] == 2 * sum(weights.all for weights in SD1.weights.values()) == large["weights"]
    cells, works = 64 * 64, [SD1.quiet[name] for name in ("sample", "decode")]
    assert small["preview"] == max(int((one.fixed + one.cell * cells) / 2) for one in works)
    assert large["preview"] == max(int((one.fixed + one.cell * 4 * cells) / 2) for one in works)


def test_a_model_is_known_by_its_size() -> None:
    assert table_for({part: held.numbers for part, held in PARTS.items()}) is forecasts.tables()["sd1"]
    assert table_for({"unet": 2_000_000_000, "te1": 123_000_000}) is None
    assert table_for({}) is None


XL = read_table(forecasts.TABLES / "sdxl.json")
XL_CARD = Place(torch.device("cuda", 0), torch.bfloat16, dict.fromkeys(XL.weights, torch.float16), rests=True)
"""Of a WebUI with --medvram-sdxl: on a card that SDXL fits whole, there is more room than these jobs are given."""
XL_PARTS = {part: HeldPart(own.all, torch.float16, 2 * own.all) for part, own in XL.weights.items()}
XL_RESTING = {part: HeldPart(own.all, torch.float16, rests=True) for part, own in XL.weights.items()}


def _xl(pictures: Path, **changes: Any) -> JobConfig:
    small = {"training__batch_size": 1, "training__gradient_checkpointing": True, "optimizer__text_encoder_lr": 0.0}
    return _job(pictures, **{"dataset__width": 1024, "dataset__height": 1024, **small, **changes})


def _training(job: JobConfig) -> int:
    return next(need.total for need in forecast(job, XL, XL_CARD).phases if need.phase == "training")


def test_a_lora_of_sdxl_trains_in_8_gib_and_in_6_with_weights_in_8_bits(pictures: Path) -> None:
    """1024², batch 1, bf16, checkpointing, rank 32, texts cached."""
    assert 4.7 * GIB < _training(_xl(pictures)) <= 8 * GIB
    assert 2.3 * GIB < _training(_xl(pictures, training__weights="fp8")) <= 6 * GIB


class _Card(ModelHost):
    """A host with SDXL and a graphics card."""

    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def family(self) -> Family:
        return XL.family


def _phases(job: JobConfig, place: Place) -> dict[str, float]:
    return {need.phase: need.total / GIB for need in forecast(job, XL, place).phases}


def test_the_whole_run_in_6_gib_where_the_host_rests_its_model(pictures: Path) -> None:
    """From the first picture to the last: whole pictures are encoded, and a preview is drawn by one part at a time."""
    job = _xl(pictures, training__weights="fp8", preview__prompt="a", preview__every=1)
    resting = _phases(job, XL_CARD)
    assert resting.keys() == {"encoding", "training", "preview"}
    unet = XL.weights["unet"].all * 2 / GIB
    assert resting["encoding"] <= 6 and resting["training"] <= 6 and resting["preview"] > unet
    whole = sum(own.all for own in XL.weights.values()) * 2 / GIB
    usual = _phases(job, dataclasses.replace(XL_CARD, rests=False))
    assert usual["encoding"] > usual["setup"] > whole > 6, "a host that has all of SDXL on the card needs more for that"
    plain = forecast(_xl(pictures, training__weights="fp8"), XL, dataclasses.replace(XL_CARD, rests=False))
    maps = next(need for need in plain.phases if need.phase == "encoding").items["encoding"]
    assert plain.needed == plain.encoding - maps > 0, "pictures are encoded in bands where there is no room for more"
    waiting = _phases(job, dataclasses.replace(XL_CARD, rests=False, unet_waits=True))
    assert usual["encoding"] - waiting["encoding"] == pytest.approx(unet, rel=1e-6)
    assert {phase: waiting[phase] for phase in ("training", "preview", "setup")} == {
        phase: usual[phase] for phase in ("training", "preview", "setup")
    }
    assert unet < resting["preview"] < usual["preview"] - (whole - unet), "the VAE draws when the UNet has left"


def test_on_a_plug_ins_device_no_weights_are_foreseen_to_leave(pictures: Path) -> None:
    """Originals and converted copies are both there, as in a memory that is all there is; none waits in the RAM."""
    job = _xl(
        pictures,
    )
    plug_in, cpu = (
        dataclasses.replace(XL_CARD, device=torch.device(kind), rests=False) for kind in ("privateuseone", "cpu")
    )
    found, whole = forecast(job, XL, plug_in), forecast(job, XL, cpu)
    weights = {need.phase: need.items["weights"] for need in found.phases}
    assert {need.phase: need.items["weights"] for need in whole.phases}.items() <= weights.items()
    assert found.apart and found.ram.items["weights"] == 0 < whole.ram.items["weights"]


@pytest.mark.parametrize(("free", "waits"), [(1.2, True), (16, False)])
def test_the_unet_leaves_a_card_that_is_foreseen_to_be_short_while_pictures_are_encoded(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, *, waits: bool
) -> None:
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: int(free * GIB))
    monkeypatch.setattr(memory_need, "resolve_precision", lambda name, device: DTYPES[name])
    host: Any = _Card(None, tmp_path)  # type: ignore[arg-type]
    found = outlook(_xl(pictures), host, XL_PARTS)
    assert found is not None and found.fits and found.unet_waits is waits
    assert found.forecast.ram.items["weights"] > 6 * GIB
    assert (found.forecast.encoding < found.forecast.needed) is waits
    resting = outlook(_xl(pictures, training__weights="fp8"), host, XL_RESTING)
    assert resting is not None and resting.fits is (free > 6)
    assert resting.forecast.ram.items["weights"] == 0, "what rests in the computer's memory is there already"
    monkeypatch.setattr(host, "device", lambda: torch.device("cpu"))
    whole, same = (
        outlook(_xl(pictures, preview__prompt="a", preview__every=1), host, one) for one in (XL_PARTS, XL_RESTING)
    )
    assert whole is not None and same is not None and whole.forecast == same.forecast, "there is no other place"


def test_what_is_foreseen_of_encoding_is_what_the_run_does(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "tables", lambda: {"tiny": TINY})
    states: list[TrainingState] = []
    holding = Holdable.holding

    def noting(self: Any, state: TrainingState, make_room: Callable[[], None]) -> Any:
        states.append(state)
        return holding(self, state, make_room)

    monkeypatch.setattr(Holdable, "holding", noting)
    for waits in (False, True):
        found = outlook(make_job(pictures), watched.host)
        assert found is not None
        told = dataclasses.replace(found, unet_waits=waits)
        monkeypatch.setattr(plan, "outlook", lambda *_, told=told, **__: told)
        assert watched.run(pictures, training__max_steps=1, output__name=f"waits-{waits}").state == "finished"
    assert [state.unet_waits for state in states] == [False, True]


def test_both_encoders_of_sdxl_are_counted(pictures: Path) -> None:
    assert list(XL.weights) == ["unet", "te1", "te2", "vae"] and XL.text_width == XL.family.width
    one = learned_numbers(_xl(pictures, optimizer__text_encoder_lr=1e-5, optimizer__text_encoder_2_lr=0.0), XL)
    both = learned_numbers(_xl(pictures, optimizer__text_encoder_lr=1e-5), XL)
    assert one.keys() == {"unet", "te1"} and both.keys() == {"unet", "te1", "te2"}
    rank, layers, width = 32, 32, 1280
    assert both["te2"] == layers * rank * (4 * 2 * width + 2 * 5 * width)
    more = _training(_xl(pictures, optimizer__text_encoder_lr=1e-5)) - _training(_xl(pictures))
    assert more > 2 * (XL.weights["te1"].products + XL.weights["te2"].products), "both are on the card then"


@pytest.mark.parametrize(
    ("room", "changes"),
    [
        (8, {"training__gradient_checkpointing": False}),
        (5, {}),
        (7, {"optimizer__text_encoder_lr": 1e-5}),
        (6, {"optimizer__text_encoder_lr": 0.0, "optimizer__text_encoder_2_lr": 1e-5}),
    ],
)
def test_the_change_that_is_named_makes_a_job_on_sdxl_fit(pictures: Path, room: int, changes: dict[str, Any]) -> None:
    _remedied(_xl(pictures, **changes), XL, XL_CARD, room)


def test_what_the_table_of_sdxl_is_not_about_is_unknown(pictures: Path, tmp_path: Path) -> None:
    parts = {part: HeldPart(weights.all, torch.float16) for part, weights in XL.weights.items()}
    assert table_for({part: held.numbers for part, held in parts.items()}) is forecasts.tables()["sdxl"]
    job = _xl(pictures, network__kind="hypernetwork")
    assert not foreseen(job, XL, torch.bfloat16)
    with pytest.raises(ValueError, match="not about"):
        forecast(job, XL, XL_CARD)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", forecasts.tables())
def test_every_kind_that_a_family_has_is_foreseen(pictures: Path, name: str, kind: str, precision: str) -> None:
    table = forecasts.tables()[name]
    for recomputed in (False, True):
        job = _job(pictures, network__kind=kind, training__precision=precision)
        job = from_values(to_values(job) | {"training.gradient_checkpointing": recomputed})
        known = kind != "hypernetwork" or table.family.hypernetworks
        assert foreseen(job, table, DTYPES[precision]) is known
        if known:
            place = Place(CARD.device, DTYPES[precision], dict.fromkeys(table.weights, torch.float16))
            assert forecast(job, table, place).needed > GIB


class _Host(ModelHost):
    def family(self) -> Family:
        return SD1.family

    def parts(self) -> dict[str, HeldPart]:
        return PARTS


def test_the_outlook_counts_what_the_model_takes_already(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 8 * GIB)
    host: Any = _Host(None, tmp_path)  # type: ignore[arg-type]
    found = outlook(_job(pictures), host)
    assert found is not None and found.fits and found.warning() is None and found.room == 8 * GIB
    assert str(found.line()).startswith(f"About {found.forecast.device.total / GIB:.1f} GiB of the 8.0 GiB")
    assert "activations" in str(found.line()) and "weights" in str(found.line())
    loaded = {part: HeldPart(held.numbers, held.dtype, 2 * held.numbers) for part, held in PARTS.items()}
    more = outlook(_job(pictures), host, loaded)
    assert more is not None and more.room == 8 * GIB + 2 * sum(held.numbers for held in PARTS.values())
    assert outlook(_job(pictures), host, {}) is None


def test_where_nothing_is_foreseen_that_is_said(pictures: Path, tmp_path: Path) -> None:
    class Other(_Host):
        def family(self) -> Family:
            return XL.family if self.known else dataclasses.replace(XL.family, memory="")

        known = True

    host: Any = Other(None, tmp_path)  # type: ignore[arg-type]
    parts = {part: HeldPart(weights.all, torch.float16) for part, weights in XL.weights.items()}
    job, strange = _xl(pictures), _xl(pictures, network__kind="hypernetwork")
    assert unknown(job, host, parts) is None and unknown(job, host, {}) is None
    assert str(unknown(strange, host, parts)).startswith("How much memory a job of this kind")
    host.known = False
    assert unknown(job, host, {}) is None
    assert str(unknown(job, host, parts)).startswith("How much memory a job takes")


def test_on_a_card_the_line_tells_of_both_memories(pictures: Path) -> None:
    foreseen = forecast(_job(pictures), SD1, CARD)
    line = str(Outlook(foreseen, "cuda", 8 * GIB, 16 * GIB).line())
    for size in (foreseen.device.total, 8 * GIB, foreseen.ram.total, 16 * GIB):
        assert f"{size / GIB:.1f} GiB" in line
    assert " card has free" in line and "activations" in line
    assert {len(one) for one in re.findall(r"\d+\.(\d+)", line)} == {1}, "a tenth of a GiB is told"


def test_encoded_pictures_are_counted_where_memory_keeps_them(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means and variances of four channels, in fp32, for each variation."""
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 64 * GIB)
    host: Any = _Host(None, tmp_path)  # type: ignore[arg-type]

    def kept(**changes: Any) -> int:
        few, many = (outlook(_job(pictures, **changes), host, looked=Looked(count)) for count in (0, 1000))
        assert few is not None and many is not None
        return many.forecast.ram.total - few.forecast.ram.total

    assert kept() == 1000 * 8 * 64 * 64 * 4
    assert kept(augment__mirror=True) == 2 * kept()
    assert kept(dataset__cache="disk") == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment__mirror": True, "inpainting__count": 3},
        {"masks__source": "file", "augment__mirror": True},
        {"masks__source": "file", "inpainting__holes": "masks"},
    ],
)
@pytest.mark.parametrize("holes", [False, True])
def test_what_is_foreseen_of_encoded_pictures_is_what_a_store_holds(
    tmp_path: Path, changes: dict[str, Any], *, holes: bool
) -> None:
    """Masks and the holes of a model that inpaints too."""
    folder, store = draw_pictures(tmp_path / "set", 2), MemoryStore()
    for number in range(2):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 32 + 8 * number, 64))  # what is the same is kept once, and what is even when mirrored
        mask.save(folder / f"{number}.mask.png")
    job = make_job(folder, dataset__width=64, dataset__height=64, **changes)
    samples = scan_folder(folder, trigger_word="t", repeats=1, masks=Masks(job.masks.source)).samples
    encode_pictures(
        samples,
        sizer_of(job),
        lambda pixels: torch.zeros(1, 8, 8, 8),
        "vae",
        store,
        lambda done, total: None,
        lambda: False,
        variations_of(job),
        holes_of(job) if holes else None,
    )
    held = sum(tensor.nbytes for tensor in store._moments.values())
    place = Place(CARD.device, CARD.dtype, CARD.held, pictures=2, inpaints=holes)
    assert forecast(job, SD1, place).ram.items["pictures"] == held


def test_the_outlook_asks_the_host_whether_its_model_inpaints(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 64 * GIB)
    host: Any = _Host(None, tmp_path)  # type: ignore[arg-type]
    plain = outlook(_job(pictures), host, looked=Looked(1000))
    monkeypatch.setattr(host, "inpaints", lambda: True)
    holes = outlook(_job(pictures), host, looked=Looked(1000))
    assert plain is not None and holes is not None
    assert holes.forecast.ram.total - plain.forecast.ram.total == 1000 * 4 * 9 * 64 * 64 * 4


def test_too_little_memory_is_told_before_the_start_and_the_run_goes_on(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command line starts a job. The page asks first: tests/ui/test_memory_line.py."""
    monkeypatch.setattr(forecasts, "tables", lambda: {"tiny": TINY})
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 0)
    view = watched.run(pictures, network__kind="checkpoint", training__precision="bf16", training__max_steps=1)
    assert view.state == "finished"
    told = [message for message in watched.of(ev.Message) if "needs about" in str(message.text)]
    assert [message.level for message in told] == ["warning"] and watched.events[0] is told[0]
    assert any(str(message.text).startswith("Memory: About") for message in watched.of(ev.Message))


def test_what_fits_is_not_warned_of(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "tables", lambda: {"tiny": TINY})
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 10 * GIB)
    found = outlook(make_job(pictures, network__kind="checkpoint"), watched.host)
    assert found is not None and found.warning() is None


def test_an_unconfirmed_job_that_does_not_fit_is_not_started(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_trainer.refusals import MemoryShort

    monkeypatch.setattr(forecasts, "tables", lambda: {"tiny": TINY})
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 0)
    runner = TrainingDesk(watched.host)
    with pytest.raises(MemoryShort, match="needs about"):
        runner.start(make_job(pictures, training__precision="bf16"), confirmed=False)
    assert not runner.running and runner.view() is None


def test_a_plan_tells_the_forecast_of_its_pictures_and_captions(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long caption is shown in several pieces, each of which costs as much; and of buckets none may be as large as
    the training size allows."""
    seen: list[Any] = []
    monkeypatch.setattr(plan, "outlook", lambda job, host, looked: seen.append((job, looked)))
    folder = draw_pictures(tmp_path / "set", 3, size=(64, 256))
    (folder / "0.txt").write_text("disc, " * 200)
    host: Any = _Host(None, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(host, "token_count", lambda text: len(text.split()))
    job = _job(folder, buckets__enabled=True, buckets__low=64, dataset__width=256, dataset__height=256)
    plan.prepare(job, host)
    ((_, looked),) = seen
    assert looked.pictures == 3 and looked.largest is not None and looked.largest[0] < looked.largest[1]
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 64 * GIB)

    def foreseen_of(looked: Looked | None, **changes: Any) -> float:
        job = _job(folder, optimizer__text_encoder_lr=1e-5, **changes)
        found = outlook(job, host, looked=looked)
        assert found is not None
        return next(need.items["activations"] for need in found.forecast.phases if need.phase == "training")

    short = dataclasses.replace(looked, captions=["disc"])
    batch = _job(folder).training.batch_size
    more = foreseen_of(looked) - foreseen_of(short)
    assert more == pytest.approx(2 * batch * SD1.steps["lora half kept"].text, rel=1e-6), "three pieces, not one"
    assert foreseen_of(looked, training__max_tokens=75) == foreseen_of(short) < 0.9 * foreseen_of(None)


@pytest.mark.parametrize("buckets", [False, True])
def test_a_batch_has_no_more_pictures_than_an_epoch_shows(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, buckets: bool
) -> None:
    """With buckets all batches are full, as what fills none waits for the next epoch."""
    seen: list[Any] = []
    monkeypatch.setattr(plan, "outlook", lambda job, host, looked: seen.append(looked))
    folder = draw_pictures(tmp_path / "set", 3)
    host: Any = _Host(None, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 64 * GIB)

    def foreseen_of(batch: int, repeats: float) -> float:
        job = _job(folder, training__batch_size=batch, dataset__repeats=repeats, buckets__enabled=buckets)
        plan.prepare(job, host)
        found = outlook(job, host, looked=seen.pop())
        assert found is not None
        return next(need.items["activations"] for need in found.forecast.phases if need.phase == "training")

    assert (foreseen_of(8, 1) == foreseen_of(3, 1)) is not buckets
    assert (foreseen_of(8, 2) == foreseen_of(6, 2)) is not buckets
    assert foreseen_of(8, 3) > foreseen_of(6, 3)


def test_of_a_batch_of_several_sizes_each_passes_by_itself(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buckets that no batch is filled of; the gradients of those before are there when a later one passes."""
    seen: list[Any] = []
    monkeypatch.setattr(plan, "outlook", lambda job, host, looked: seen.append(looked))
    folder = draw_pictures(tmp_path / "set", 3)
    for number, size in enumerate([(64, 256), (256, 64), (128, 128)]):
        Image.new("RGB", size).save(folder / f"{number}.png")
    host: Any = _Host(None, tmp_path)  # type: ignore[arg-type]
    job = _job(folder, training__batch_size=3, buckets__enabled=True, buckets__low=64)
    plan.prepare(job, host)
    assert seen[0].fullest.pictures == 1 and seen[0].fullest.later
    monkeypatch.setattr(memory_need, "free_bytes", lambda device: 64 * GIB)
    found, one = outlook(job, host, looked=seen[0]), outlook(_job(folder, training__batch_size=1), host)
    assert found is not None and one is not None
    items, alone = (next(n.items for n in own.forecast.phases if n.phase == "training") for own in (found, one))
    assert items["gradients"] > 0 == alone["gradients"] and items["activations"] <= alone["activations"]


def test_what_has_been_learned_waits_while_its_average_is_looked_at(pictures: Path) -> None:
    """Of a schedule-free optimizer, in the computer's memory; held-out pictures are measured beside the gradients."""
    learned = 4 * SD1.weights["unet"].all
    common = {"network__kind": "checkpoint", "validation__pictures": "share", "optimizer__ema": True}
    for name, copies in (("AdamWScheduleFree", learned), ("AdamW", 0)):
        job = _job(pictures, optimizer__name=name, **common)
        for device in ("cuda", "cpu"):
            found = forecast(job, SD1, dataclasses.replace(CARD, device=torch.device(device)))
            own = next(need.items for need in found.phases if need.phase == "measuring")
            average = learned if name == "AdamW" else copies if device == "cpu" else 0
            assert own["EMA"] == average and own["gradients"] == learned and found.ram.items["EMA"] == copies
            assert own["activations"] > 2 * SD1.weights["unet"].products, "copies of what learns, of autocast"
    assert "measuring" not in {need.phase for need in forecast(_job(pictures), SD1, CARD).phases}


def test_a_remedy_by_smaller_pictures_is_reckoned_with_its_own_size(pictures: Path) -> None:
    job = _job(pictures, dataset__width=1024, dataset__height=1024, training__batch_size=4)
    place = dataclasses.replace(CARD, largest=(1024, 960))
    room = int(forecast(_job(pictures, training__batch_size=4), SD1, place).needed * 1.02)
    plain = dataclasses.replace(CARD, largest=None)
    small = int(forecast(_job(pictures, training__batch_size=4), SD1, plain).needed * 1.02)
    assert room > small
    sizes = [one.changes for one in remedies_for(job, SD1, place, small)]
    assert any("dataset.width" in changes for changes in sizes)
