"""A weighted sum of two full-size checkpoints with random numbers, against copying a file of that size.

    python -m bench.toolbox --family SDXL --folder /tmp/big

Time is taken in turns, copy and merge, both with an fsync at their end; the ratio is taken round by round. Beside it
stands what each takes of a processor, which others' load changes little. Before each the machine rests: a virtual
machine that gives freed memory back to its host takes up to ten times as long to write into it again, and whoever comes
right after a file was removed would be spared that. Memory is
the process' anonymous memory (RssAnon, Linux) at its highest, less what it was before: what the merge takes beside the
files' maps. The files are made in fp16 and removed afterwards; twice their size and one result have to fit the disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lib_trainer.families.family import VAE_PREFIX, Family
from lib_trainer.families.known import FAMILIES
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.toolbox.layouts import checkpoint_text, ldm_unet, ldm_vae
from lib_trainer.toolbox.merge import prepare
from lib_trainer.toolbox.merge_settings import MergeSettings, ModeName
from lib_trainer.toolbox.output import Target
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.streaming import write_stream

CHANNELS = 320
REST = 6.0
"""Seconds in which freed memory goes back to a virtual machine's host."""


def unet_of(family: Family) -> Any:
    depths = family.unet.depths
    down = [("CrossAttnDownBlock2D" if depth else "DownBlock2D") for depth in depths]
    up = [("CrossAttnUpBlock2D" if depth else "UpBlock2D") for depth in reversed(depths)]
    more: dict[str, Any] = {}
    if family.unet.vector:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": family.unet.vector,
            "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
            "use_linear_projection": True,
        }
    widths = (1, 2, 4, 4)[: len(depths)]
    return UNet2DConditionModel(
        block_out_channels=tuple(CHANNELS * width for width in widths), down_block_types=down, up_block_types=up,
        cross_attention_dim=family.unet.context, **more,
    )  # fmt: skip


def text_of(width: int, layers: int, projected: bool) -> Any:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        projection_dim=width,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def shapes_of(family: Family) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of the published size."""
    with torch.device("meta"):
        unet, texts = unet_of(family), [text_of(one.width, one.layers, bool(one.pooled)) for one in family.encoders]
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        )  # fmt: skip

    def held(module: Any) -> dict[str, Stored]:
        return {name: Stored(tuple(one.shape), one.dtype, one.detach) for name, one in module.state_dict().items()}

    found = {f"{family.unet.prefix}{name}": one for name, one in ldm_unet(held(unet), family.unet).items()}
    found |= {f"{VAE_PREFIX}{name}": one for name, one in ldm_vae(held(vae)).items()}
    for encoder, text in zip(family.encoders, texts, strict=True):
        found |= {f"{encoder.prefix}{name}": one for name, one in checkpoint_text(held(text), encoder).items()}
    return {name: one.shape for name, one in found.items()}


def make_file(path: Path, family: Family, seed: int) -> Path:
    layout = {name: (shape, torch.float16) for name, shape in shapes_of(family).items()}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 << 20, generator=generator).mul_(0.02).half()

    def pieces(name: str) -> Iterator[torch.Tensor]:
        left = torch.Size(layout[name][0]).numel()
        while left > 0:
            yield noise[: min(left, len(noise))]
            left -= len(noise)

    return write_stream(Target(path), layout, pieces, {}, Progress())


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("this system does not tell anonymous memory")


class Peak:
    """The highest anonymous memory while it is entered, above what it was."""

    def __enter__(self) -> Peak:
        self.before, self.highest, self._over = anonymous(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.highest = max(self.highest, anonymous() - self.before)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and those of a processor, from a machine at rest."""
    os.sync()
    time.sleep(REST)
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def merge(a: Path, b: Path, target: Path, mode: ModeName) -> None:
    prepare(MergeSettings(a=str(a), b=str(b), output=str(target), mode=mode, weight=0.3)).work(Progress())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=[family.card for family in FAMILIES], default=FAMILIES[0].card)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", default="weighted_sum")
    options = parser.parse_args()
    family = next(family for family in FAMILIES if family.card == options.family)
    folder = options.folder / f"bench-{family.card}"
    folder.mkdir(parents=True)
    try:
        a, b = (make_file(folder / f"{name}.safetensors", family, seed) for seed, name in enumerate("ab"))
        print(f"{family.card}: {a.stat().st_size / 2**30:.2f} GiB a file, {torch.get_num_threads()} threads")
        ratios, peak, out = [], 0, folder / "out.safetensors"
        for _ in range(options.rounds):
            copied, copying = timed(lambda: copy(a, out))
            out.unlink()
            with Peak() as watched:
                merged, merging = timed(lambda: merge(a, b, out, options.mode))
            out.unlink()
            ratios.append(merged / copied)
            peak = max(peak, watched.highest)
            print(
                f"copy {copied:.1f} s ({copying:.1f} s of a processor), "
                f"{options.mode} {merged:.1f} s ({merging:.1f} s), ratio {ratios[-1]:.2f}",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.2f}, {peak / 2**20:.0f} MiB above the maps")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
