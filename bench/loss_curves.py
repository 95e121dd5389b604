"""Whole runs of the miniature by the way that trains now and by the plain way, with the same seed: their losses.

    python -m bench.loss_curves --kinds lora locon loha lokr --steps 200

The plain way is what each piece of docs/speed.md replaces: adapters that keep their own tensors on top of the layer's
own forward, norms in fp32, gates by autograd, transformers' own text encoder. In fp32 both must be one curve up to
rounding; in bf16 they differ as two orders of summation do, far less than two seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import torch
from torch.nn import functional as F

from lib_trainer.config import OptimizerConfig
from lib_trainer.host import norms
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.text.texts import Texts
from lib_trainer.networks import adapters
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.networks.products import GatedGelu
from lib_trainer.training.plan import prepare
from lib_trainer.training.run import run_plan
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from miniature.demo import COLOURS, SHAPE, SIDE, TRIGGER, concept_job
from miniature.export import export_webui
from miniature.world import write_concept


@contextlib.contextmanager
def plain_way() -> Iterator[None]:
    """What the fast pieces do, without them."""
    real = norms._normed

    def own_parameters(network: LoraNetwork, own: Any, *, whole: bool) -> list[torch.nn.Parameter]:
        return [parameter for adapter in own for parameter in adapter.parameters()]

    def gate(both: torch.Tensor) -> torch.Tensor:
        x, opened = both.chunk(2, dim=-1)
        return x * F.gelu(opened)

    with (
        mock.patch.object(LoraNetwork, "flatten", own_parameters),
        mock.patch.object(adapters, "is_plain", lambda layer, forward: False),
        mock.patch.object(norms, "_normed", lambda norm, x: real(norm, x.float()).to(x.dtype)),
        mock.patch.object(Texts, "lean", lambda self: contextlib.nullcontext()),
        mock.patch.object(GatedGelu, "apply", gate),
    ):
        yield


def losses(kind: str, precision: str, steps: int, seed: int, batch: int) -> list[float]:
    """Of every step of a run of the demo's job."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint = export_webui(folder / "model")
        write_concept(folder / "pictures", shape=SHAPE, trigger=TRIGGER, colours=COLOURS, size=(SIDE, SIDE))
        job = concept_job(folder / "pictures", steps=steps)
        training: Any = msgspec.structs.replace(job.training, precision=precision, seed=seed, batch_size=batch)
        network: Any = msgspec.structs.replace(job.network, kind=kind)
        optimizer = job.optimizer if kind != "loha" else OptimizerConfig(unet_lr=1e-3, text_encoder_lr=1e-3)
        job = msgspec.structs.replace(job, training=training, network=network, optimizer=optimizer)
        host, told = StandaloneHost(checkpoint, folder, torch.device("cpu")), list[ev.Event]()
        run_plan(prepare(job, host), host, Control(), told.append)
    return [event.loss for event in told if isinstance(event, ev.StepDone)]


def smooth(curve: list[float], width: int = 20) -> list[float]:
    return [statistics.fmean(curve[start : start + width]) for start in range(len(curve) - width + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=("lora", "locon", "loha", "lokr"), default=["lora"])
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    print(f"{options.steps} steps, batch {options.batch}, torch {torch.__version__}; differences to the mean loss")
    print("| kind | precision | mean loss now | plain | largest of one step | of a mean of 20 | of another seed |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        for precision in options.precisions:
            job = (kind, precision, options.steps)
            now, other = losses(*job, 1, options.batch), losses(*job, 2, options.batch)
            with plain_way():
                plain = losses(*job, 1, options.batch)
            mean = statistics.fmean(plain)
            shown = [
                max(abs(a - b) for a, b in zip(*pair)) / mean
                for pair in ((now, plain), (smooth(now), smooth(plain)), (smooth(now), smooth(other)))
            ]
            row = " | ".join(f"{number:.2g}" for number in shown)
            print(f"| {kind} | {precision} | {statistics.fmean(now):.5f} | {mean:.5f} | {row} |", flush=True)


if __name__ == "__main__":
    main()
