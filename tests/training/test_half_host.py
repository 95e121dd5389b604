"""Every kind of training on hosts that hold their model as the WebUI does: in fp16, in bf16, in fp32, in 8 bits.

The real modules of ldm on a card, and on the CPU, whose torch multiplies fp16 from 2.4 on; and ldm's time embedding
cast to the host's `devices.dtype_unet` as the WebUI's sd_hijack_unet.py does it. Afterwards every parameter has its
bytes, dtype and device, nothing else of the model has changed, nothing of the run is left on the card, and a seed draws
the same picture, bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

from lib_trainer.config import from_values
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.text.texts import Texts
from lib_trainer.ports import HeldPart, PreviewRequest
from lib_trainer.training import precision
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.optimizers import OPTIMIZERS
from lib_trainer.work.monitor import RunView
from tests.card import CPU, DEVICES, ON_A_CARD, settled
from tests.support import SCALE, ModelHost, Tiny, differences, roots_of, snapshot, tiny_schedule

JOBS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora without text encoder": {"optimizer.text_encoder_lr": 0.0},
    "dora": {"network.dora": True},
    "locon": {"network.kind": "locon"},
    "loha": {"network.kind": "loha"},
    "lokr": {"network.kind": "lokr"},
    "pivotal": {"network.kind": "pivotal", "embedding.names": "zrk-a"},
    "embedding": {"network.kind": "embedding"},
    "hypernetwork": {"network.kind": "hypernetwork"},
    "checkpoint": {"network.kind": "checkpoint"},
    "checkpoint with text encoder": {"network.kind": "checkpoint", "finetune.text_encoder_lr": 1e-6},
    "difference": {"network.kind": "difference"},
    "lora with checkpointing": {"training.gradient_checkpointing": True},
}
FP8 = {"training.weights": "fp8"}
MORE_JOBS: dict[str, dict[str, Any]] = JOBS | {
    "lora on 8-bit weights": FP8 | {"training.gradient_checkpointing": True},
    "loha on 8-bit weights": FP8 | {"network.kind": "loha"},
    "checkpoint's text encoder on 8-bit weights": FP8
    | {"network.kind": "checkpoint", "finetune.unet_lr": 0.0, "finetune.text_encoder_lr": 1e-6},
}
STORED = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "8 bits": torch.float16}
COVERING = [
    ("bf16", "lora without text encoder", "fp16"),
    ("bf16", "checkpoint with text encoder", "bf16"),
    ("bf16", "dora", "fp32"),
    ("fp32", "hypernetwork", "fp16"),
    ("fp32", "pivotal", "bf16"),
    ("fp32", "lora with checkpointing", "auto"),
    ("8 bits", "lora", "fp32"),
    ("8 bits", "locon", "fp16"),
    ("8 bits", "embedding", "bf16"),
    ("8 bits", "checkpoint", "bf16"),
    ("fp16", "lora on 8-bit weights", "bf16"),
    ("fp32", "loha on 8-bit weights", "fp16"),
    ("8 bits", "checkpoint's text encoder on 8-bit weights", "fp32"),
]
"""Every other host with every precision, with and without the text encoder, and with checkpointing."""
BITSANDBYTES = {
    f"lora by {name}": {"optimizer.name": name, "training.max_steps": 3}
    for name, entry in OPTIMIZERS.items()
    if entry.card
}
CARD_JOBS: dict[str, dict[str, Any]] = (
    MORE_JOBS
    | BITSANDBYTES
    | {
        "dora with dropouts": {"network.dora": True, "network.dropout": 0.2, "network.rank_dropout": 0.2},
        "locon with masks and learned weights": {
            "network.kind": "locon", "masks.source": "alpha", "masks.prior": 0.5, "loss.learned_weights": True,
        },
        "lora beside class pictures": {"prior.class_prompt": "a thing", "prior.class_pictures": 1},
        "loha with an average": {"network.kind": "loha", "optimizer.ema": True, "optimizer.unet_lr": 1e-3},
        "lora that preserves": {"preserve.weight": 1.0, "training.gradient_checkpointing": True},
        "lora with held-out pictures": {"validation.pictures": "folder", "validation.every": 1},
        "dora, held out, text encoder left alone": {
            "network.dora": True, "optimizer.text_encoder_lr": 0.0, "validation.pictures": "folder",
        },
        "checkpoint by Adafactor": {"network.kind": "checkpoint", "optimizer.name": "Adafactor"},
        "checkpoint by AdamW8bit": {"network.kind": "checkpoint", "optimizer.name": "AdamW8bit"},
    }
)  # fmt: skip
ON_CARDS = [
    *(("fp16", job, "auto") for job in CARD_JOBS if job not in JOBS),
    *(("8 bits", job, "fp16") for job in JOBS),
    *(("bf16", job, "bf16") for job in ("lora", "loha", "lokr", "difference", "pivotal")),
    *(("fp32", job, "fp16") for job in ("lora", "checkpoint", "lokr", "embedding")),
]
"""What a card does beside all of the above."""


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one: a VAE in half precision takes longer for a picture than the rest for a step."""
    folder = tmp_path_factory.mktemp("one")
    image = Image.new("RGBA", (64, 64), (90, 20, 200, 255))
    image.paste((90, 20, 200, 0), (0, 0, 64, 24))  # for whom it is a mask
    image.save(folder / "0.png")
    return folder


Snapshot = dict[str, object]
Made = Callable[[str, torch.device], tuple[LdmModel, Snapshot]]
Kept = dict[tuple[str, torch.device], tuple[tuple[nn.Module, ...], Snapshot]]


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    """Modules that were found to be bit for bit what they were before a run: the next test's, which takes them out."""
    found: Kept = {}
    yield found
    found.clear()


@pytest.fixture
def held_model(tiny: Tiny, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes the host's model in the given storage on a device, with what the WebUI changes of ldm; and tells all that a
    run might change of it."""
    import ldm.modules.diffusionmodules.openaimodel as openai_model

    from lib_trainer.host.standalone.tokenizer import load_tokenizer

    devices = SimpleNamespace(dtype_unet=None)
    embed = openai_model.timestep_embedding
    monkeypatch.setattr(openai_model, "timestep_embedding", lambda *a, **k: embed(*a, **k).to(devices.dtype_unet))

    def make(stored: str, device: torch.device) -> tuple[LdmModel, Snapshot]:
        if device.type == "cpu" and not precision._cpu_multiplies_fp16():
            pytest.skip("this torch has no fp16 on the CPU")
        roots, seen = kept.pop((stored, device), None) or _held(tiny, stored, device)
        unet, vae, text = roots
        devices.dtype_unet = STORED[stored]  # type: ignore[assignment]
        clip = Texts([text], load_tokenizer())
        return LdmModel(unet, vae, clip, tiny_schedule(), SCALE, "tiny", tiny.path, devices=devices), seen

    yield make
    assert devices.dtype_unet in (None, *STORED.values())


def _held(tiny: Tiny, stored: str, device: torch.device) -> tuple[tuple[nn.Module, ...], Snapshot]:
    roots = tuple(copy.deepcopy(part).eval().to(device, STORED[stored]) for part in (tiny.unet, tiny.vae, tiny.text))
    unet, _, text = roots
    unet.dtype = STORED[stored]  # type: ignore[assignment]
    if stored == "8 bits":
        for part in (unet, text):
            _store_in_8_bits(part)
    return roots, snapshot(*roots)


def _store_in_8_bits(root: nn.Module, *, keep: bool = True) -> None:
    """As `load_model_weights` of the WebUI does with FP8 weight, and with Cache FP16 weight for LoRA."""
    for module in root.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if keep:
                module.fp16_weight = module.weight.data.clone().half()  # type: ignore[assignment]
                if module.bias is not None:
                    module.fp16_bias = module.bias.data.clone().half()  # type: ignore[assignment]
            module.to(torch.float8_e4m3fn)


@torch.no_grad()
def _drawn(model: LdmModel) -> str:
    """What a seed's noise becomes in a few steps, with the model as the host holds it, in the precision it has."""
    device, dtype = model.device, vars(model._devices)["dtype_unet"]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        told = model.encode_text(["a disc"], 1, 1)
        for step in (900, 500, 100):
            latents = latents - 0.3 * model.predict(latents, torch.tensor([step], device=device), told).to(dtype)
    assert bool(latents.isfinite().all())
    return hashlib.sha256(latents.float().cpu().numpy().tobytes()).hexdigest()


def _run(model: LdmModel, root: Path, folder: Path, changes: dict[str, Any]) -> RunView:
    values = {
        "dataset.folder": str(folder), "dataset.trigger_word": "zorb", "dataset.width": 64, "dataset.height": 64,
        "training.max_steps": 2, "network.rank": 4, "network.alpha": 4.0, "preview.prompt": "zorb", "preview.every": 1,
        "output.name": "zrk", "difference.before": str(folder),
    }  # fmt: skip
    if "validation.pictures" in changes:
        held = root / "held"
        held.mkdir()
        Image.new("RGB", (64, 64), (9, 200, 90)).save(held / "1.png")
        values["validation.folder"] = str(held)
    runner = TrainingDesk(_HalfHost(model, root))
    runner.start(from_values(values | changes))
    view = runner.wait(300)
    assert view is not None
    return view


class _HalfHost(ModelHost):
    """Draws its previews with the model as it is then, what has been learned included."""

    drawn: ClassVar[list[str]] = []

    def device(self) -> torch.device:
        return self.loaded.device

    def parts(self) -> dict[str, HeldPart]:
        return {"unet": HeldPart.of(self.loaded.unet, self.device())}  # type: ignore[attr-defined]

    def preview(self, request: PreviewRequest) -> Image.Image:
        if draws(self.loaded):
            self.drawn.append(_drawn(self.loaded))
        return super().preview(request)


def draws(model: Any) -> bool:
    """Its own forwards can be called, which with 8-bit weights the WebUI replaces; on a CPU they take too long."""
    return bool(model.device.type == "cuda" and min(one.itemsize for one in model.unet.parameters()) > 1)


Held = Callable[[torch.device, str, dict[str, Any], str], None]


@pytest.fixture
def held(held_model: Made, kept: Kept, picture: Path, tmp_path: Path) -> Held:
    """Trains by a job's values on a device's host of the given storage, in a precision, and finds it put back."""

    def train(device: torch.device, stored: str, job: dict[str, Any], precision: str) -> None:
        changes = job | {"training.precision": precision}
        model, before = held_model(stored, device)
        unet, steps = vars(model._devices)["dtype_unet"], changes.get("training.max_steps", 2)
        drawn = _drawn(model) if draws(model) else ""
        _HalfHost.drawn.clear()
        bytes_before = settled(device)
        view = _run(model, tmp_path, picture, changes)
        assert (view.state, view.error, view.step) == ("finished", "", steps)
        assert len(view.previews) == steps
        assert differences(before, snapshot(*roots_of(model))) == []
        assert vars(model._devices)["dtype_unet"] is unet
        assert settled(device, bytes_before) <= bytes_before
        if draws(model):
            assert _drawn(model) == drawn
            assert len(_HalfHost.drawn) >= steps
        kept[stored, device] = roots_of(model), before

    return train


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_on_a_host_in_half_precision(held: Held, device: torch.device, precision: str, job: str) -> None:
    held(device, "fp16", JOBS[job], precision)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("stored", "job", "precision"), COVERING, ids=[" ".join(one) for one in COVERING])
def test_on_other_hosts(held: Held, device: torch.device, stored: str, job: str, precision: str) -> None:
    held(device, stored, MORE_JOBS[job], precision)


@pytest.mark.parametrize("device", [ON_A_CARD])
@pytest.mark.parametrize(("stored", "job", "precision"), ON_CARDS, ids=[" ".join(one) for one in ON_CARDS])
def test_on_a_card(held: Held, device: torch.device, stored: str, job: str, precision: str) -> None:
    name = CARD_JOBS[job].get("optimizer.name", "AdamW")
    if not OPTIMIZERS[name].installed:
        pytest.skip(f"{OPTIMIZERS[name].module} is not installed")
    held(device, stored, CARD_JOBS[job], precision)


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_checkpoint_of_an_8_bit_host_has_no_8_bit_rounding(
    held_model: Made, picture: Path, tmp_path: Path, device: torch.device
) -> None:
    """Neither in what was trained nor in what was not."""
    from safetensors.torch import load_file

    model, _ = held_model("8 bits", device)
    kept = model.checkpoint_tensors()
    changes = JOBS["checkpoint"] | {"finetune.unet_lr": 1e-9, "output.precision": "fp32"}
    view = _run(model, tmp_path, picture, changes)
    assert view.state == "finished" and view.output is not None
    saved = load_file(view.output)
    assert min(tensor.itemsize for tensor in kept.values() if tensor.is_floating_point()) == 2
    names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
    assert len([name for name in names if name.startswith("cond_stage_model.")]) > 40
    for name in names:
        torch.testing.assert_close(saved[name].float(), kept[name].float(), rtol=1e-3, atol=1e-6, msg=name)


def test_a_whole_checkpoint_that_is_there_in_8_bits_only_is_refused(
    held_model: Made, tiny: Tiny, picture: Path, tmp_path: Path
) -> None:
    model, _ = held_model("fp16", CPU)
    _store_in_8_bits(model.unet, keep=False)
    view = _run(model, tmp_path, picture, JOBS["checkpoint"])
    assert view.state == "failed" and view.step == 0
    assert view.error.startswith("The loaded checkpoint is held in 8 bits") and "turn off FP8 weight" in view.error
