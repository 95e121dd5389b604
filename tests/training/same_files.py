"""A short run of every kind on both hosts, and a digest of every file that each leaves. Run as a program of its own:

    python -m tests.training.same_files OUT.json [CASE ...]

Its environment (`PORTABLE`) is set by whoever starts it, before torch is loaded: kernels without a processor's own
instructions, one thread. A digest is over names, types, shapes and bytes of tensors, pixels of pictures, and what a
file says of itself, without dates, versions and what holds a JPEG.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-FMA,-FMA_Usable,-FMA4,-FMA4_Usable,-AVX512F",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
LEFT_OUT = frozenset(
    {
        "ss_session_id",
        "ss_training_started_at",
        "ss_training_finished_at",
        "ss_training_comment",
        "modelspec.date",
        "ssmd_cover_images",
    }
)
RATES: dict[str, Any] = {"optimizer__unet_lr": 0.01, "optimizer__text_encoder_lr": 0.01}
EMBEDDING: dict[str, Any] = {
    "network__kind": "embedding",
    "embedding__learning_rate": 0.1,
    "embedding__initial_text": "disc",
    "dataset__trigger_word": "",
}
TUNING: dict[str, Any] = {"network__kind": "checkpoint", "finetune__unet_lr": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"training__batch_size": 2, "dataset__repeats": 2, "output__save_every": 2},
    "locon": {"network__kind": "locon", "network__conv_rank": 2, "network__conv_alpha": 1.0},
    "loha": {"network__kind": "loha", "network__rank": 2},
    "lokr": {"network__kind": "lokr", "network__factor": 4},
    "dora": {"network__dora": True},
    "rank-stabilised, dropouts": {
        "network__rank_stabilised": True,
        "network__dropout": 0.2,
        "network__rank_dropout": 0.2,
        "network__module_dropout": 0.2,
        "blocks__preset": "no_input",
        "blocks__rates": "middle=0.5",
        "blocks__ranks": "output_1=2",
    },
    "pivotal": {"network__kind": "pivotal", "embedding__learning_rate": 0.1, "embedding__names": "zrk-a, zrk-b"},
    "difference": {"network__kind": "difference", "difference__base_steps": 1},
    "embedding": EMBEDDING | {"embedding__names": "zrk-a, zrk-b", "embedding__vectors": 3, "output__save_every": 2},
    "embedding pt": EMBEDDING | {"embedding__format": "pt", "output__name": "zrk-c"},
    "hypernetwork": {"network__kind": "hypernetwork", "hypernetwork__learning_rate": 0.01},
    "checkpoint": TUNING | {"finetune__difference_rank": 2, "optimizer__ema": True},
    "checkpoint, text encoder": TUNING | {"finetune__text_encoder_lr": 1e-3, "output__precision": "fp16"},
    "class pictures": {"prior__class_prompt": "disc", "prior__class_pictures": 2, "prior__weight": 0.5},
}
PREVIEW: dict[str, Any] = {"preview__prompt": "a zork", "preview__every": 2, "preview__steps": 2, "preview__seed": 3}
TWICE = ("lora", "pivotal", "checkpoint")
"""Cases that each host runs with previews and without; the others have them where they are drawn, on the standalone."""


def main(out: Path, only: Collection[str]) -> None:
    import torch

    from tests.support import build_tiny, draw_pictures, shallow

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with shallow():
            tiny = build_tiny(root)
        pictures = draw_pictures(root / "pictures", 4)
        draw_pictures(root / "before", 4, side=72)
        found: dict[str, str] = {}
        for host_name, model in (("standalone", _standalone(tiny)), ("ldm", _ldm(tiny))):
            for case in only or CASES:
                changes = CASES[case]
                drawn = (host_name == "standalone",) if case not in TWICE else (False, True)
                for previews in ({**PREVIEW} if one else {} for one in drawn):
                    name = f"{host_name}: {case}{' with previews' if previews else ''}"
                    place = root / "runs" / name.replace(": ", "-").replace(", ", "-")
                    _run(_host(host_name, model, tiny.path, place), pictures, RATES | changes | previews)
                    found |= {f"{name}: {path}": digest for path, digest in digests(place)}
    versions = {"torch": torch.__version__, "processor": processor(), "digests": found}
    out.write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def processor() -> str:
    """A digest of torch's own arithmetic, without a line of ours: where it is another, so is every file."""
    import torch
    from torch.nn import functional as F

    with torch.random.fork_rng():
        torch.manual_seed(1)
        x, weight = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 3, 3, requires_grad=True)
        maps = F.silu(F.group_norm(F.conv2d(x, weight, padding=1), 8))
        rows = F.layer_norm(maps.flatten(2).transpose(1, 2), (32,))
        out = F.gelu(F.scaled_dot_product_attention(rows, rows, rows.sin() @ torch.randn(32, 32)))
        out.square().mean().backward()
        assert weight.grad is not None
        learned = weight.grad / (weight.grad.square().sqrt() + 1e-8) + weight.detach().exp().log1p()
        values = torch.linalg.svd(torch.randn(48, 40), full_matrices=False)
    return hashlib.sha256(repr(_plain([out.detach(), learned, *values])).encode()).hexdigest()[:16]


def _standalone(tiny: Any) -> Any:
    import torch

    from lib_trainer.host.standalone.model import DiffusersModel

    return DiffusersModel.load(tiny.path, torch.device("cpu"))


def _ldm(tiny: Any) -> Any:
    from lib_trainer.host.ldm.model import LdmModel
    from lib_trainer.host.standalone.tokenizer import load_tokenizer
    from lib_trainer.host.text.texts import Texts
    from tests.support import SCALE, tiny_schedule

    text = Texts([tiny.text], load_tokenizer())
    return LdmModel(tiny.unet, tiny.vae, text, tiny_schedule(), SCALE, "tiny", tiny.path)


def _host(name: str, model: Any, checkpoint: Path, root: Path) -> Any:
    import torch

    from lib_trainer.host.standalone.host import StandaloneHost
    from lib_trainer.ports import HeldPart
    from tests.support import ModelHost

    if name == "ldm":
        host = ModelHost(model, root)
        host.parts = lambda: {"unet": HeldPart.of(model.unet, torch.device("cpu"))}  # type: ignore[method-assign]
        return host
    own = StandaloneHost(checkpoint, root, torch.device("cpu"))
    own._model = model
    return own


def _run(host: Any, pictures: Path, changes: dict[str, Any]) -> None:
    from lib_trainer.training.desk import TrainingDesk
    from tests.support import make_job

    if changes.get("network__kind") == "difference":
        changes = changes | {"difference__before": str(pictures.with_name("before"))}
    runner = TrainingDesk(host)
    runner.start(make_job(pictures, **changes))
    view = runner.wait()
    assert view is not None and view.state == "finished", view


def digests(root: Path) -> Iterator[tuple[str, str]]:
    """(path below the root, digest) of every file."""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        relative = path.relative_to(root).as_posix()
        if relative.startswith("cache/class/"):  # the folder is called after the model's digest
            relative = f"cache/class/{path.name}"
        yield relative, hashlib.sha256(repr(_content(path)).encode()).hexdigest()[:16]


def _content(path: Path) -> Any:
    import safetensors
    import torch
    from PIL import Image

    if path.suffix == ".safetensors":
        with safetensors.safe_open(str(path), framework="pt") as file:
            said = {key: value for key, value in (file.metadata() or {}).items() if key not in LEFT_OUT}
            return _plain(said), {name: _plain(file.get_tensor(name)) for name in sorted(file.keys())}
    if path.suffix == ".pt":
        return _plain(torch.load(path, weights_only=True))
    if path.suffix == ".png":
        image = Image.open(path)
        return image.mode, image.size, hashlib.sha256(image.tobytes()).hexdigest()
    return path.read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """The same in dicts, lists and plain values, tensors as (type, shape, digest)."""
    import torch

    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return [(str(key), _plain(one)) for key, one in sorted(value.items(), key=lambda item: str(item[0]))]
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


if __name__ == "__main__":
    missing = [name for name, value in PORTABLE.items() if os.environ.get(name) != value]
    assert not missing, missing
    main(Path(sys.argv[1]), sys.argv[2:])
