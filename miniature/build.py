"""Build the miniature from nothing: `python -m miniature.build --work FOLDER` trains, exports and evaluates.

Stages that find their result in the work folder are skipped, so an interrupted build goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from .common import VAE_CONFIG
from .export import CHECKPOINT


def _start(arguments: list[str], threads: int) -> subprocess.Popen[bytes]:
    """One stage as a process of its own with so many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen([sys.executable, "-m", *arguments], env=environment)


def _finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all; a failed stage ends the build."""
    for process in processes:
        if process.wait():
            raise SystemExit(f"failed: {process.args!r}")


def assemble(work: Path, dest: Path = CHECKPOINT, diffusion: str = "diffusion.pt", vae_name: str = "vae.pt") -> None:
    """Write the single-file checkpoint from the trained parts in work."""
    from diffusers import AutoencoderKL

    from .ldm_layout import to_ldm, write

    parts = torch.load(work / diffusion)
    vae = AutoencoderKL(**VAE_CONFIG)
    vae.load_state_dict(torch.load(work / vae_name))
    write(to_ldm(parts["unet"], vae.state_dict(), parts["text"]), dest)


def build(work: Path) -> None:
    """All stages in order, on two cores; the diffusion model trains as two ranks that share their gradients."""
    work.mkdir(parents=True, exist_ok=True)
    place = ["--work", str(work)]
    started = time.time()
    if not (work / "vae_joint.pt").is_file():
        _finish([_start(["miniature.train_vae", "joint", *place], 2)])
    if not (work / "vae.pt").is_file():
        _finish([_start(["miniature.train_vae", "decoder", *place], 2)])
    if not (work / "diffusion.pt").is_file():
        ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        _finish([_start([*ranks, "miniature.train_diffusion", *place], 1)])
    _finish([_start(["miniature.train_tagger", *place], 2)])
    assemble(work)
    print(f"built in {(time.time() - started) / 60:.0f} minutes", flush=True)
    _finish([_start(["miniature.evaluate", "--sheet", str(work / "sheet.png")], 2)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--assemble-only", action="store_true", help="only write the checkpoint from what is there")
    options = parser.parse_args()
    assemble(options.work) if options.assemble_only else build(options.work)
