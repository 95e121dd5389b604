"""Every kind of training on hosts that hold their model as the WebUI does: in fp16, in bf16, in fp32, in 8 bits.

The real modules of ldm on the CPU, whose torch multiplies fp16 from 2.4 on, and ldm's time embedding cast to the
host's `devices.dtype_unet` as the WebUI's sd_hijack_unet.py does it. Afterwards every parameter has its bytes, dtype
and device, and nothing else of the model has changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from lib_trainer.config import from_values
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.text.texts import Texts
from lib_trainer.ports import HeldPart
from lib_trainer.training import precision
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work.monitor import RunView
from tests.support import SCALE, ModelHost, Tiny, differences, roots_of, snapshot, tiny_schedule

pytestmark = pytest.mark.skipif(not precision._cpu_multiplies_fp16(), reason="this torch has no fp16 on the CPU")

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


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one: a VAE in half precision takes longer for a picture than the rest for a step."""
    folder = tmp_path_factory.mktemp("one")
    Image.new("RGB", (64, 64), (90, 20, 200)).save(folder / "0.png")
    return folder


Made = Callable[[str], LdmModel]


@pytest.fixture
def held_model(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes the host's model in the given storage, with what the WebUI changes of ldm."""
    import ldm.modules.diffusionmodules.openaimodel as openai_model

    from lib_trainer.host.standalone.tokenizer import load_tokenizer

    devices = SimpleNamespace(dtype_unet=None)
    embed = openai_model.timestep_embedding
    monkeypatch.setattr(openai_model, "timestep_embedding", lambda *a, **k: embed(*a, **k).to(devices.dtype_unet))

    def make(stored: str) -> LdmModel:
        unet, vae, text = (copy.deepcopy(part).eval().to(STORED[stored]) for part in (tiny.unet, tiny.vae, tiny.text))
        devices.dtype_unet = unet.dtype = STORED[stored]  # type: ignore[assignment]
        if stored == "8 bits":
            for part in (unet, text):
                _store_in_8_bits(part)
        clip = Texts([text], load_tokenizer())
        return LdmModel(unet, vae, clip, tiny_schedule(), SCALE, "tiny", tiny.path, devices=devices)

    yield make
    assert devices.dtype_unet in (None, *STORED.values())


def _store_in_8_bits(root: nn.Module, *, keep: bool = True) -> None:
    """As `load_model_weights` of the WebUI does with FP8 weight, and with Cache FP16 weight for LoRA."""
    for module in root.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if keep:
                module.fp16_weight = module.weight.data.clone().half()  # type: ignore[assignment]
                if module.bias is not None:
                    module.fp16_bias = module.bias.data.clone().half()  # type: ignore[assignment]
            module.to(torch.float8_e4m3fn)


def _run(model: LdmModel, root: Path, folder: Path, changes: dict[str, Any]) -> RunView:
    values = {
        "dataset.folder": str(folder), "dataset.trigger_word": "zorb", "dataset.width": 64, "dataset.height": 64,
        "training.max_steps": 2, "network.rank": 4, "network.alpha": 4.0, "preview.prompt": "zorb", "preview.every": 1,
        "output.name": "zrk", "difference.before": str(folder),
    }  # fmt: skip
    runner = TrainingDesk(_HalfHost(model, root))
    runner.start(from_values(values | changes))
    view = runner.wait(300)
    assert view is not None
    return view


class _HalfHost(ModelHost):
    def parts(self) -> dict[str, HeldPart]:
        return {"unet": HeldPart.of(self.loaded.unet, torch.device("cpu"))}  # type: ignore[attr-defined]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_on_a_host_in_half_precision(held_model: Made, picture: Path, tmp_path: Path, precision: str, job: str) -> None:
    _trained_and_put_back(held_model("fp16"), tmp_path, picture, JOBS[job] | {"training.precision": precision})


@pytest.mark.parametrize(("stored", "job", "precision"), COVERING, ids=[" ".join(one) for one in COVERING])
def test_on_other_hosts(held_model: Made, picture: Path, tmp_path: Path, stored: str, job: str, precision: str) -> None:
    _trained_and_put_back(held_model(stored), tmp_path, picture, MORE_JOBS[job] | {"training.precision": precision})


def _trained_and_put_back(model: LdmModel, root: Path, folder: Path, changes: dict[str, Any]) -> None:
    before = snapshot(*roots_of(model))
    held = vars(model._devices)["dtype_unet"]
    view = _run(model, root, folder, changes)
    assert (view.state, view.error, view.step) == ("finished", "", 2)
    assert len(view.previews) == 2
    assert differences(before, snapshot(*roots_of(model))) == []
    assert vars(model._devices)["dtype_unet"] is held


def test_a_whole_checkpoint_of_an_8_bit_host_has_no_8_bit_rounding(
    held_model: Made, picture: Path, tmp_path: Path
) -> None:
    """Neither in what was trained nor in what was not."""
    from safetensors.torch import load_file

    model = held_model("8 bits")
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
    model = held_model("fp16")
    _store_in_8_bits(model.unet, keep=False)
    view = _run(model, tmp_path, picture, JOBS["checkpoint"])
    assert view.state == "failed" and view.step == 0
    assert view.error.startswith("The loaded checkpoint is held in 8 bits") and "turn off FP8 weight" in view.error
