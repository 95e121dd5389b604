"""What the buttons of the tab Models do, and what its polls answer: everything but the layout."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lib_trainer.config.fields import label_of
from lib_trainer.families.family import Family, Unet
from lib_trainer.options.describe import FieldSpec, describe
from lib_trainer.options.values import made
from lib_trainer.ports import Host
from lib_trainer.refusals import Field, TrainerError
from lib_trainer.toolbox.desk import Prepared, Tool, ToolDesk
from lib_trainer.toolbox.facts import facts_of
from lib_trainer.toolbox.installed import CHECKPOINTS, LORAS, VAES, Installed
from lib_trainer.toolbox.shares import PRESETS, block_weights
from lib_trainer.toolbox.source import open_source
from lib_trainer.toolbox.strengths import PRESETS as LORA_PRESETS
from lib_trainer.toolbox.strengths import parse_meant, parse_weights
from lib_trainer.toolbox.tools import TOOLS
from lib_trainer.toolbox.trial import prepare_block_grid, prepare_grid, prepare_put_back, prepare_try
from lib_trainer.toolbox.trial_settings import BlockGridSettings, GridSettings, PictureSettings
from lib_trainer.ui.kit.notices import Notices, naming
from lib_trainer.ui.models.view import blocks_html, job_html, lines_html, tried_html
from lib_trainer.work.events import Event, Finished

PREFIX = "models"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """An option that is a list of block weights: its tool, itself, the file that tells the family, the weight of what
    is not named (None: 1), and its presets."""

    tool: str
    option: str
    file: str
    weight: str | None
    presets: tuple[str, ...]

    @property
    def needs(self) -> list[str]:
        return [self.option, self.file, *([self.weight] if self.weight else [])]


CURVES = (
    Curve("merge", "blocks", "a", "weight", PRESETS),
    Curve("merge", "second_blocks", "a", "second", PRESETS),
    Curve("repair", "blocks", "lora", None, tuple(LORA_PRESETS)),
)


class ModelsActions:
    """The page's use of a desk and a host. Holds nothing of a page, so any number of pages may watch."""

    def __init__(self, desk: ToolDesk, host: Host, *, prefix: str = PREFIX) -> None:
        self.desk, self.host, self.prefix = desk, host, prefix
        self.drawing: dict[str, type[PictureSettings]] = {"merge": GridSettings, "repair": BlockGridSettings}
        self.installed = Installed(host.model_folders)
        self.named = {name: naming({**tool.specs, **self.draw_specs(name)}) for name, tool in TOOLS.items()}
        self.notices = {
            name: Notices(f"{prefix}_{name}", self.named[name], dict.fromkeys(self.draw_specs(name), self.trial(name)))
            for name in TOOLS
        }
        self._numbers = itertools.count(1)

    def draw_specs(self, name: str) -> Mapping[str, FieldSpec]:
        """What pictures of a tool's grid are told; none for most tools."""
        return describe(self.drawing[name]) if name in self.drawing else {}

    def trial(self, name: str) -> str:
        """How the ids begin of what a tool's grid is told."""
        return f"{self.prefix}_{name}_trial"

    # -- tools ---------------------------------------------------------------------------------------------------

    def settings(self, tool: Tool, values: Mapping[str, Any]) -> Any:
        """A tool's settings: names of installed files become paths, and a result without a folder gets the host's.

        Raises `ConfigError` naming an option whose value is not allowed.
        """
        told = {path: self._meant(tool.specs[path], value) for path, value in values.items()}
        for written in ("output", "report"):
            if told.get(written):
                told[written] = self._placed(tool, str(told[written]), told)
        return tool.made(told)

    def _meant(self, spec: FieldSpec, value: Any) -> Any:
        if spec.kind == "int" and isinstance(value, float) and value.is_integer():
            return int(value)  # a page's numbers are floats
        if not spec.files:
            return value
        if spec.kind == "list":
            return tuple(self.installed.path(one) for one in value)
        return self.installed.path(value)

    def _placed(self, tool: Tool, output: str, values: Mapping[str, Any]) -> str:
        if Path(output).name != output or output.startswith("~"):
            return output
        first = str(values[tool.places[0]])
        folder = {CHECKPOINTS: self.host.checkpoint_folder, LORAS: self.host.lora_folder}.get(tool.makes)
        return str((folder() if folder else Path(first).absolute().parent) / output)

    def look(self, name: str, values: Mapping[str, Any]) -> str:
        """A notice of what would be done, or of what is wrong."""
        tool = TOOLS[name]

        def work() -> str:
            lines = self.desk.look(tool, self.settings(tool, values))
            return lines_html(lines, self.named[name], next(self._numbers))

        return self.notices[name].of(work)

    def start(self, name: str, values: Mapping[str, Any]) -> str:
        tool = TOOLS[name]
        return self.notices[name].of(lambda: self.desk.start(tool, self.settings(tool, values), self._over))

    def _over(self, event: Event) -> None:
        """The host hears of a file that was made."""
        if isinstance(event, Finished) and event.path is not None:
            try:
                self.host.added(event.path)
            except Exception:  # the file is there, whatever the host makes of it
                _log.exception("The host could not be told of %s", event.path)

    # -- the loaded model ----------------------------------------------------------------------------------------

    def try_merge(self, values: Mapping[str, Any]) -> str:
        """The merge in the loaded model, for the pictures that follow."""
        return self._on_the_model("merge", lambda: prepare_try(self.settings(TOOLS["merge"], values), self.host))

    def put_back(self) -> str:
        return self._on_the_model("merge", lambda: prepare_put_back(self.host))

    def grid(self, name: str, values: Mapping[str, Any], drawing: Mapping[str, Any]) -> str:
        """A grid of merges, or of a LoRA's blocks."""

        def prepared() -> Prepared:
            specs = self.draw_specs(name)
            asked = made(self.drawing[name], {path: self._meant(specs[path], value) for path, value in drawing.items()})
            settings = self.settings(TOOLS[name], values)
            return (prepare_grid if name == "merge" else prepare_block_grid)(settings, asked, self.host)

        return self._on_the_model(name, prepared)

    def _on_the_model(self, name: str, prepare: Callable[[], Prepared]) -> str:
        return self.notices[name].of(lambda: self.desk.on_the_model(name, prepare))

    def stop(self) -> str:
        if not self.desk.running:
            return self.notices["merge"].say("Nothing is under way.")
        self.desk.stop()
        return ""

    def poll(self, seen: str) -> tuple[Any, Any, Any, Any, str]:
        """The panel, Stop, what the loaded model holds and Put back as they are now, and what has been seen."""
        view, tried = self.desk.view(), self.host.exchanged
        now = json.dumps([[view.id, view.state, view.stopping] if view else [], str(tried or "")])
        active, turned = bool(view and view.active), now != seen
        panel = job_html(view, self.prefix, self._named_of_last) if active or turned else gr.update()
        stop = gr.update(interactive=active) if turned else gr.update()
        back = gr.update(interactive=tried is not None and not active) if turned else gr.update()
        # a merge is in the model a moment before its job has ended: both are told together
        holds = tried_html(tried) if turned and not (active and seen) else gr.update()
        return panel, stop, holds, back, now

    def _named_of_last(self, field: Field, begins: bool = True) -> str:
        """Of any tool: options that have the same name have the same label, but for few."""
        spec = next((tool.specs[field.path] for tool in TOOLS.values() if field.path in tool.specs), None)
        return label_of(field if spec is None else Field(field.path, spec.label), begins)

    # -- files and blocks ----------------------------------------------------------------------------------------

    def offers(self) -> dict[str, list[str]]:
        """What lists of files offer, read anew."""
        return self.installed.names()

    def begins_with(self, name: str, offers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """What a tool's form shows before anybody has changed it, beside defaults: the host's own folders."""
        if name == "duplicates":
            return {"folders": tuple(offers["folders"])}
        if name == "inspect":
            return {"vaes": tuple(str(folder) for folder in self.host.model_folders()[VAES] if folder.exists())}
        return {}

    def curve(self, curve: Curve, values: Mapping[str, Any]) -> str:
        """Sliders and drawing of a list of block weights. What is not understood is drawn as if it were empty: the
        tool itself will say what is wrong."""
        unet = self._unet(str(values.get(curve.file, "")))
        start = 1.0 if curve.weight is None else float(values.get(curve.weight) or 0)
        field = f"{self.prefix}_{curve.tool}_{curve.option}"
        weights: Mapping[str, float] = {}
        with contextlib.suppress(TrainerError):
            weights = _weights(curve, str(values.get(curve.option, "")), unet)
        return blocks_html(field, unet, weights, start, [name for name in curve.presets if _fits(curve, name, unet)])

    def _unet(self, text: str) -> Unet:
        """Of the family of a file, or of the host's where none is named."""
        path = self.installed.path(text)
        with contextlib.suppress(TrainerError):
            file = Path(path) if Path(path).exists() else parse_meant(path, "").path if path else Path()
            if file.suffix == ".safetensors" and file.is_file():
                family = facts_of(open_source(file)).family
                if isinstance(family, Family):
                    return family.unet
        return self.host.family().unet


def _fits(curve: Curve, preset: str, unet: Unet) -> bool:
    """Whether there is that preset for UNets of so many blocks."""
    try:
        _weights(curve, preset, unet)
    except TrainerError:
        return False
    return True


def _weights(curve: Curve, text: str, unet: Unet) -> Mapping[str, float]:
    if curve.weight is not None:
        return block_weights(text, curve.option, unet)
    base, blocks = parse_weights(text, unet, curve.option)
    return {"base": base, **blocks}
