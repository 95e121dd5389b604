"""What the host does with its buttons and its memory modes while a run goes on."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any
from unittest import mock

from modules import lowvram, processing, progress, restart, sd_hijack, sd_models, shared

from lib_trainer.config import from_values
from lib_trainer.work import events
from webui_probe import leftovers, runs

CHECKS = (
    "low_vram_run", "moved", "moved_by_grid", "waiting", "preview_clip_skip", "program_ends", "heeds_ctrl_c",
    "refreshed_embeddings",
)  # fmt: skip


def low_vram_run(values: dict[str, Any], failing: bool = False) -> dict[str, Any]:
    """A run on a host with --medvram: how many of its hooks there are at each step and in each preview, of which with
    `failing` the first one fails when it is decoded."""
    model = sd_models.model_data.sd_model
    seen: dict[str, list[int]] = {"before": [_hooks()], "at steps": [], "in previews": []}
    draw = processing.process_images_inner

    def drawing(parameters: Any) -> Any:
        seen["in previews"].append(_hooks())
        if failing and len(seen["in previews"]) == 1:
            with runs.FAULTS["preview"]():
                return draw(parameters)
        return draw(parameters)

    def heard(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            wrapped = sum(name in vars(model.first_stage_model) for name in ("encode", "decode"))
            seen["at steps"].append(_hooks() + wrapped + (lowvram.module_in_gpu is not None))

    with mock.patch.object(processing, "process_images_inner", drawing), runs.repeatable():
        runs.runner().start(from_values(values), heard)
        runs.runner().wait(300)
    return runs.view() | seen | {"after": [_hooks()], "drawn by": str(type(lowvram.module_in_gpu).__name__)}


def _hooks() -> int:
    return sum(len(leftovers.low_vram_hooks(module)) for module in sd_models.model_data.sd_model.modules())


def moved(values: dict[str, Any], at_step: dict[str, str]) -> dict[str, Any]:
    """A run during which Unload and Load are pressed: how often the model was moved as a whole."""
    model, moves = sd_models.model_data.sd_model, []
    with contextlib.ExitStack() as stack:
        stack.callback(vars(model).pop, "to", None)
        vars(model)["to"] = lambda *args, **kwargs: moves.append(str(args)) or model
        ended = runs.run(values, at_step=at_step)
    return ended | {"moves": moves}


def moved_by_grid(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A grid of saved steps: how often the model was moved as a whole."""
    model, moves = sd_models.model_data.sd_model, []
    with contextlib.ExitStack() as stack:
        stack.callback(vars(model).pop, "to", None)
        vars(model)["to"] = lambda *args, **kwargs: moves.append(str(args)) or model
        ended = runs.steps_grid(values, settings)
    return ended | {"moves": moves}


def waiting() -> list[str]:
    return list(progress.pending_tasks)


def program_ends(result: str) -> list[bool]:
    """What "Apply and restart UI" does last, but for the end: whether `result` is there then."""
    seen: list[bool] = []
    with mock.patch.object(restart.os, "_exit", lambda code: seen.append(Path(result).exists())):
        restart.stop_program()
    return seen


def heeds_ctrl_c() -> str:
    """Whose handler hears of Ctrl-C."""
    return str(getattr(signal.getsignal(signal.SIGINT), "__module__", ""))


def refreshed_embeddings() -> list[str]:
    """The names after a Refresh of the Textual Inversion tab, while the text encoder is where no word can be looked up,
    as SD 2.x's away from the card."""
    database = sd_hijack.model_hijack.embedding_db
    encoder = sd_models.model_data.sd_model.cond_stage_model
    away = RuntimeError("Expected all tensors to be on the same device")
    with contextlib.suppress(RuntimeError), mock.patch.object(encoder, "encode_embedding_init_text", side_effect=away):
        database.load_textual_inversion_embeddings(force_reload=True)
    return sorted(database.word_embeddings)


def preview_clip_skip(clip_skip: int, choose: int = 0) -> dict[str, Any]:
    """The setting while a preview is drawn and after it; with `choose` the user changes it meanwhile."""
    from lib_trainer.ports import PreviewRequest

    draw, seen = processing.process_images_inner, []

    def drawing(parameters: Any) -> Any:
        seen.append(shared.opts.CLIP_stop_at_last_layers)
        out = draw(parameters)
        if choose:
            shared.opts.data["CLIP_stop_at_last_layers"] = choose
        return out

    with mock.patch.object(processing, "process_images_inner", drawing):
        request = PreviewRequest("red circle", width=64, height=64, steps=1, clip_skip=clip_skip)
        image = runs.runner().host.preview(request)
    return {"while": seen, "after": shared.opts.CLIP_stop_at_last_layers, "picture": image.tobytes().hex()[:4000]}
