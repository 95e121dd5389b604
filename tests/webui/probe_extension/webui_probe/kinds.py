"""Files of other kinds of training: taken away again, and made by the WebUI's own training."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import time
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from modules import sd_hijack, shared
from modules.hypernetworks import hypernetwork
from modules.textual_inversion import textual_inversion

from lib_trainer.config import from_values
from lib_trainer.work import events
from webui_probe import half, runs

CHECKS = ("remove_files", "known", "built_in", "timed_run")


def known() -> dict[str, list[str]]:
    """Names that prompts and menus know."""
    from modules import sd_models

    return {
        "embeddings": sorted(sd_hijack.model_hijack.embedding_db.word_embeddings),
        "hypernetworks": sorted(shared.hypernetworks),
        "checkpoints": sorted(Path(info.filename).name for info in sd_models.checkpoints_list.values()),
    }


def remove_files(paths: list[str]) -> dict[str, list[str]]:
    """Delete files and let the WebUI forget them."""
    from modules import sd_models

    for path in map(Path, paths):
        path.unlink(missing_ok=True)
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    shared.reload_hypernetworks()
    chosen = shared.opts.data["sd_model_checkpoint"]
    sd_models.list_models()
    shared.opts.data["sd_model_checkpoint"] = chosen  # it is set back to that of --ckpt
    return known()


def timed_run(values: dict[str, Any]) -> dict[str, Any]:
    """A run of ours, with what `built_in` says of its own."""
    before = peak = psutil.Process().memory_info().rss
    seconds: list[float] = []

    def heard(event: events.Event) -> None:
        nonlocal peak
        if isinstance(event, events.StepDone):
            seconds.append(event.seconds)
            peak = max(peak, psutil.Process().memory_info().rss)

    runs.runner().start(from_values(values), heard)
    runs.runner().wait()
    return runs.view() | {"seconds": sorted(seconds)[len(seconds) // 2], "peak": peak, "before": before}


def built_in(kind: str, name: str, data: str, template: str, logs: str, steps: int, rate: float) -> dict[str, Any]:
    """Train an embedding of two vectors or a hypernetwork with the WebUI's own code; its file, losses and step time."""
    templates = textual_inversion.textual_inversion_templates
    templates["probe.txt"] = textual_inversion.TextualInversionTemplate("probe.txt", template)
    losses: list[float] = []
    stamps: list[float] = []
    before = peak = psutil.Process().memory_info().rss

    def heard(directory: str, file: str, step: int, length: int, values: dict[str, Any]) -> None:
        nonlocal peak
        losses.append(float(values["loss"]))
        stamps.append(time.perf_counter())
        peak = max(peak, psutil.Process().memory_info().rss)

    if kind == "embedding":
        Path(shared.cmd_opts.embeddings_dir).mkdir(parents=True, exist_ok=True)
        path = textual_inversion.create_embedding(name, 2, False, "*")
        sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
        function: Any = textual_inversion.train_embedding
        given: dict[str, Any] = {"embedding_name": name, "save_embedding_every": 0}
    else:
        folder = Path(shared.cmd_opts.hypernetwork_dir)
        folder.mkdir(parents=True, exist_ok=True)
        made = hypernetwork.Hypernetwork(
            name, enable_sizes=[32, 64], layer_structure=[1, 2, 1], activation_func="swish", weight_init="Normal"
        )
        path = str(folder / f"{name}.pt")
        made.save(path)
        shared.reload_hypernetworks()
        function, given = hypernetwork.train_hypernetwork, {"hypernetwork_name": name, "save_hypernetwork_every": 0}
    given |= {
        "id_task": "probe", "learn_rate": str(rate), "batch_size": 1, "gradient_step": 1, "data_root": data,
        "log_directory": logs, "training_width": 64, "training_height": 64, "varsize": False, "steps": steps,
        "clip_grad_mode": "disabled", "clip_grad_value": "0.1", "shuffle_tags": False, "tag_drop_out": 0,
        "latent_sampling_method": "once", "use_weight": False, "create_image_every": 0,
        "template_filename": "probe.txt", "save_image_with_stored_embedding": False, "preview_from_txt2img": False,
    }  # fmt: skip
    wanted = inspect.signature(function).parameters
    arguments = {parameter: given.get(parameter) for parameter in wanted}
    flags = [(p, p.requires_grad) for p in shared.sd_model.parameters()]
    quiet = mock.patch.dict(shared.opts.data, save_training_settings_to_txt=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(textual_inversion, "write_loss", heard))
        stack.enter_context(quiet)
        stack.enter_context(torch.random.fork_rng())
        if shared.cmd_opts.precision == "half":
            stack.enter_context(half.in_fp32())
        torch.manual_seed(5)
        function(**arguments)
    for parameter, flag in flags:
        parameter.grad = None
        parameter.requires_grad_(flag)
    shared.loaded_hypernetworks = []
    sd_hijack.model_hijack.fixes = None
    templates.pop("probe.txt")
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(stamps))
    return {
        "path": path,
        "losses": losses,
        "seconds": gaps[len(gaps) // 2] if gaps else 0.0,
        "peak": peak,
        "before": before,
    }
