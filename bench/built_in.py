"""Embedding and hypernetwork training of ours against the WebUI's own, in the real WebUI on the miniature.

    WEBUI_DIR=... python -m bench.built_in --steps 300 --runs 3

Each contender trains in a freshly started WebUI on the same pictures, captions, steps, rate, batch (1) and start. The
loss is then measured apart from both, on the same noise for all: the mean over every picture at `LEVELS` noise levels,
in the standalone host. At batch 1 the noise of a run decides its last percent, so there are several, ours and theirs in
turn: the table has the mean of the losses with the lowest and the highest. Step time is the median, memory the
process's peak resident size minus what it held before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.networks.formats.embedding_file import read_embedding
from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork
from lib_trainer.ports import LoadedModel
from lib_trainer.training.objective import Objective
from miniature.export import export_webui
from miniature.world import write_concept
from tests.webui.server import Webui

NAME, SIDE, LEVELS = "zrk-bench", 64, 24
RATES = {"embedding": 0.02, "hypernetwork": 1e-3}


def values(kind: str, folder: Path, steps: int, seed: int) -> dict[str, Any]:
    return {
        "dataset.folder": str(folder), "dataset.width": SIDE, "dataset.height": SIDE, "dataset.repeats": 1,
        "network.kind": kind, "embedding.vectors": 2, "embedding.initial_text": "*", "embedding.norm_decay": 0.0,
        "embedding.learning_rate": RATES["embedding"], "hypernetwork.learning_rate": RATES["hypernetwork"],
        "optimizer.schedule": "constant", "optimizer.max_gradient_norm": 0.0, "training.max_steps": steps,
        "training.precision": "fp32", "training.seed": seed, "output.name": NAME, "preview.every": 0,
    }  # fmt: skip


def contend(
    who: str, kind: str, home: Path, folder: Path, template: Path, steps: int, work: Path, number: int
) -> dict[str, Any]:
    """Train in a WebUI of its own; the file is copied out before it ends."""
    server = Webui(home, work / f"{who}-{kind}-{number}")
    server.prepare()
    try:
        server.start(export_webui(server.models))
        server.txt2img()
        if who == "ours":
            ended = server.probe("timed_run", values=values(kind, folder, steps, number))
            assert ended["state"] == "finished", ended
            made = ended | {"path": ended["output"]}
        else:
            made = server.probe(
                "built_in", kind=kind, name=NAME, data=str(folder), template=str(template), logs=str(work), steps=steps,
                rate=RATES[kind],
            )  # fmt: skip
        made["file"] = str(work / f"{who}-{kind}-{number}{Path(made['path']).suffix}")
        shutil.copyfile(made["path"], made["file"])
        return dict(made)
    finally:
        server.stop()


def measured(model: LoadedModel, kind: str, file: Path | None, folder: Path) -> float:
    """Mean loss over all pictures at evenly spread noise levels, the same noise for every file."""
    losses = []
    objective, generator = Objective(model.schedule), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1)
            latents = model.encode_images(pixels.permute(2, 0, 1)[None])[:, :4] * model.latent_scale
            caption = f"{NAME}, {path.with_suffix('.txt').read_text()}"
            noised = objective.noised(latents.expand(LEVELS, -1, -1, -1).contiguous(), generator)
            words = {NAME: read_embedding(file)} if file and kind == "embedding" else {}
            with model.tokens().extended(words):
                told = model.encode_text([caption] * LEVELS, 1, 1)
            if file and kind == "hypernetwork":
                with read_hypernetwork(file).applied(model.adaptable_modules()):
                    predicted = model.predict(noised.latents, noised.timesteps, told)
            else:
                predicted = model.predict(noised.latents, noised.timesteps, told)
            losses.append(float(objective.loss(predicted, noised)))
    return float(np.mean(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", choices=RATES, default=list(RATES))
    options = parser.parse_args()
    home = Path(os.environ["WEBUI_DIR"])
    with tempfile.TemporaryDirectory(prefix="built-in-") as name:
        work = Path(name)
        folder = write_concept(work / "pictures", count=12, colours=("red",))
        template = work / "template.txt"
        template.write_text("[name], [filewords]\n")
        model = StandaloneHost(export_webui(work / "model"), work).model()
        print(
            "| kind | trained by | loss before | loss after | s/step | memory above the start |\n"
            "|---|---|---|---|---|---|"
        )
        for kind in options.kinds:
            before = measured(model, kind, None, folder)
            found: dict[str, list[dict[str, Any]]] = {"ours": [], "the WebUI": []}
            for number in range(options.runs):
                for who, runs in found.items():
                    made = contend(who, kind, home, folder, template, options.steps, work, number + 1)
                    runs.append(made | {"loss": measured(model, kind, Path(made["file"]), folder)})
            for who, runs in found.items():
                losses = [one["loss"] for one in runs]
                after = f"{np.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"
                seconds = np.median([one["seconds"] for one in runs])
                grown = np.median([one["peak"] - one["before"] for one in runs]) / 2**20
                print(f"| {kind} | {who} | {before:.4f} | {after} | {seconds:.3f} | {grown:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
