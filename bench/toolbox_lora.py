"""Extraction at rank 32 from full-size SD 1.5 files, beside sd-scripts' own tool: time, memory and what is lost.

    python -m bench.toolbox_lora --dir FOLDER [--sd-scripts FOLDER]
    python -m bench.toolbox_lora --layers 12

The files are random, in fp16, with the names and shapes of published ones (2 GB each). The tuned one differs by a part
of rank 48 and by noise, as fine-tuning leaves it. Memory is the process's own (anonymous) beside the mapped files,
sampled; of sd-scripts, which maps nothing, it is the largest resident size.

`--layers`: so many of the model's Linear layers alone, of their full size and without files, which takes a minute where
the whole takes an hour of a busy processor: our decomposition, and that of sd-scripts' tool, a full SVD whose factors
are cut to the 99 % quantile of their numbers.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from lib_trainer.families.family import VAE_PREFIX
from lib_trainer.families.known import DEFAULT
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.networks.formats.tensor_file import write_tensors
from lib_trainer.networks.low_rank import largest_parts
from lib_trainer.toolbox.layers import Layer, layers_of
from lib_trainer.toolbox.layouts import ldm_unet, ldm_vae
from lib_trainer.toolbox.mix import flat_difference
from lib_trainer.toolbox.opened import open_lora
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.source import open_source
from lib_trainer.toolbox.tools import TOOLS

RANK, HIDDEN = 32, 48


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every tensor of an SD 1.5 file."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    def held(module: nn.Module) -> dict[str, Stored]:
        return {name: Stored(tuple(one.shape), one.dtype, one.clone) for name, one in module.state_dict().items()}

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=DEFAULT.unet.context)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    found = {f"{DEFAULT.unet.prefix}{name}": one for name, one in ldm_unet(held(unet), DEFAULT.unet).items()}
    found |= {f"{VAE_PREFIX}{name}": one for name, one in ldm_vae(held(vae)).items()}
    found |= {f"{DEFAULT.encoders[0].prefix}{name}": one for name, one in held(text).items()}
    return {name: one.shape for name, one in found.items() if not name.endswith("position_ids")}


def write_files(folder: Path) -> tuple[Path, Path]:
    """The base and the tuned one, if they are not there yet."""
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    if all(path.is_file() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for name, shape in shapes().items():
        base[name] = (torch.randn(shape, generator=draw) * 0.03).half()
        tuned[name] = base[name]
        if len(shape) > 1 and not name.startswith(VAE_PREFIX):
            flat = base[name].float().flatten(1)
            change = torch.randn(shape[0], HIDDEN, generator=draw) @ torch.randn(HIDDEN, flat.shape[1], generator=draw)
            noise = torch.randn(flat.shape, generator=draw)
            tuned[name] = (flat + 3e-4 * change + 5e-4 * noise).reshape(shape).half()
    for path, tensors in zip(paths, (base, tuned)):
        write_tensors(path, tensors, {}, overwrite=True)
    return paths


class Anonymous:
    """The most memory of this process's own while it is open, in MiB."""

    def __enter__(self) -> Anonymous:
        self.begun, self.most, self._on = _anonymous(), 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._on:
            self.most = max(self.most, _anonymous() - self.begun)
            time.sleep(0.02)

    def __exit__(self, *details: object) -> None:
        self._on = False
        self._thread.join()


def _anonymous() -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon"))) >> 10


def lost(base: Path, tuned: Path, lora: Path) -> tuple[float, float]:
    """‖what is lost‖ / ‖the difference‖ of the UNet's layers that a file has, and of the best that its rank can do."""
    one, other, made = open_source(base), open_source(tuned), open_lora(lora, DEFAULT)
    missing, least, whole = 0.0, 0.0, 0.0
    for layer in _some(made.modules):
        delta = (other.number(layer.tensor()) - one.number(layer.tensor())).flatten(1)
        own = flat_difference(made.own(layer)).reshape(delta.shape)
        missing += float((delta - own).square().sum())
        least += float(torch.linalg.svdvals(delta)[RANK:].square().sum())
        whole += float(delta.square().sum())
    return (missing / whole) ** 0.5, (least / whole) ** 0.5


def _some(held: Collection[Layer]) -> list[Layer]:
    """Every eighth Linear layer: exact values of all take minutes."""
    return [layer for layer in layers_of(DEFAULT) if layer.adapted and layer in held and not layer.kernel][::8]


def by_layers(count: int) -> None:
    """Print seconds and what is lost over some layers."""
    every = [layer for layer in layers_of(DEFAULT) if layer.adapted and not layer.kernel]
    sizes = shapes()
    draw = torch.Generator().manual_seed(0)
    took, missing, least, whole = [0.0, 0.0], [0.0, 0.0], 0.0, 0.0
    for layer in every[:: max(1, len(every) // count)][:count]:
        rows, columns = torch.Size(sizes[layer.tensor()])[0], torch.Size(sizes[layer.tensor()])[1:].numel()
        change = torch.randn(rows, HIDDEN, generator=draw) @ torch.randn(HIDDEN, columns, generator=draw)
        delta = 3e-4 * change + 5e-4 * torch.randn(rows, columns, generator=draw)
        started = time.process_time()
        u, s, vh = largest_parts(delta, RANK)
        took[0] += time.process_time() - started
        missing[0] += float((delta - u * s @ vh).square().sum())
        started = time.process_time()
        u, s, vh = torch.linalg.svd(delta)
        up, down = u[:, :RANK] * s[:RANK], vh[:RANK]
        limit = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99)
        up, down = up.clamp(-limit, limit), down.clamp(-limit, limit)
        took[1] += time.process_time() - started
        missing[1] += float((delta - up @ down).square().sum())
        least, whole = least + float(s[RANK:].square().sum()), whole + float(delta.square().sum())
    print(f"{count} layers\n\n| tool | seconds of a processor | lost | least possible |\n|---|---|---|---|")
    for name, seconds, lacking in zip(("extract", "sd-scripts' way"), took, missing):
        print(f"| {name} | {seconds:.1f} | {(lacking / whole) ** 0.5:.4f} | {(least / whole) ** 0.5:.4f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="where the files are made")
    parser.add_argument("--layers", type=int, default=0, help="some layers alone, without files")
    parser.add_argument("--sd-scripts", type=Path, help="its folder; what it imports must be importable here")
    options = parser.parse_args()
    if options.layers:
        by_layers(options.layers)
        return 0
    if options.dir is None:
        parser.error("name a folder with --dir, or --layers")
    base, tuned = write_files(options.dir)
    print(f"| {'tool':12} | seconds | of a processor | MiB | lost | least possible |\n|{'---|' * 6}", flush=True)
    out = options.dir / "ours.safetensors"
    tool = TOOLS["extract"]
    values = {"base": str(base), "tuned": str(tuned), "rank": RANK, "conv_rank": -1, "output": str(out)}
    started, used = time.monotonic(), time.process_time()
    with Anonymous() as memory:
        done = tool.prepare(tool.made({**values, "existing": "replace"})).work(Progress())
    seconds, used = time.monotonic() - started, time.process_time() - used
    share, least = lost(base, tuned, out)
    print(f"| {'extract':12} | {seconds:.0f} | {used:.0f} | {memory.most} | {share:.4f} | {least:.4f} |", flush=True)
    print("\n".join(f"  {note}" for note in done.notes), file=sys.stderr)
    if options.sd_scripts:
        theirs = options.dir / "theirs.safetensors"
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "networks/extract_lora_from_models.py", "--model_org", base, "--model_tuned", tuned,
             "--dim", str(RANK), "--save_to", theirs, "--save_precision", "fp16"],
            cwd=options.sd_scripts, check=True,
        )  # fmt: skip
        seconds, child = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        used, most = child.ru_utime + child.ru_stime, child.ru_maxrss >> 10
        share, least = lost(base, tuned, theirs)
        print(f"| {'sd-scripts':12} | {seconds:.0f} | {used:.0f} | {most} | {share:.4f} | {least:.4f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
