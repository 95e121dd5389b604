"""The WebUI as the core's `Host`: its queue, its progress bar, its sampler and its folders."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from modules import call_queue, devices, paths, processing, progress, sd_hijack, sd_models, sd_samplers, shared
from PIL import Image

from lib_trainer.families.family import Family
from lib_trainer.families.known import DEFAULT
from lib_trainer.families.prediction import Predicts
from lib_trainer.files import all_by_stem
from lib_trainer.host.exchanged import Exchanged, Exchanging
from lib_trainer.host.ldm.model import inpaints_in
from lib_trainer.host.webui.interrupts import BUTTON, Interrupts
from lib_trainer.host.webui.loading import before_loading
from lib_trainer.host.webui.low_vram import LowVram
from lib_trainer.host.webui.model import (
    ZERO_TERMINAL,
    WebuiModel,
    check_model,
    drawn_as,
    family_of,
    own_backups,
    predicts_of,
    rests,
    roots_of,
    schedule_of,
    take_out_prompt_networks,
    tokenizer_of,
    word_width,
)
from lib_trainer.host.webui.words import width_known
from lib_trainer.patching import attribute
from lib_trainer.ports import HeldPart, PreviewRequest
from lib_trainer.refusals import ModelError, Sentence

STATE_FIELDS = (
    "job", "job_no", "job_count", "sampling_step", "sampling_steps", "textinfo",
    "current_latent", "current_image_sampling_step",
)  # fmt: skip
"""What a preview changes of the WebUI's state, and the run's progress bar reads."""


PROMPT_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")
"""Where the WebUI keeps the last prompt's encoding for the next picture of the same parameters, across jobs."""


class WebuiHost(Exchanging):
    """One per process; holds nothing of the model between runs."""

    def __init__(self) -> None:
        self.task_id: str | None = None
        """Id of the run in the WebUI's own queue, for its progress bar; None while there is none."""
        self._low_vram = LowVram(None)

    def check(self) -> None:
        check_model(sd_models.model_data.sd_model)

    def device(self) -> torch.device:
        return torch.device(devices.device)

    def family(self) -> Family:
        with contextlib.suppress(ModelError):
            return family_of(sd_models.model_data.sd_model)
        return DEFAULT

    def inpaints(self) -> bool:
        model = sd_models.model_data.sd_model
        with contextlib.suppress(ModelError):
            check_model(model)
            return inpaints_in(model.model.diffusion_model)
        return False

    def predicts(self) -> Predicts:
        self.check()
        return predicts_of(sd_models.model_data.sd_model)

    def model(self) -> WebuiModel:
        """Checked again: the checkpoint may have been changed while the run waited in the queue.

        Some kinds of training start from the weights, so the LoRAs of the last prompt are taken out of them here.
        """
        self.check()
        take_out_prompt_networks(sd_models.model_data.sd_model)
        return WebuiModel(sd_models.model_data.sd_model)

    @contextlib.contextmanager
    def lease(self, title: str, *, trains: bool = False) -> Iterator[WebuiLease]:
        """Wait in the WebUI's queue like a generation, and release it however the run ends."""
        task = progress.create_task_id("training")
        progress.add_task_to_queue(task)
        self.task_id = task
        try:
            with call_queue.queue_lock, Interrupts(task).watched():
                shared.state.begin(job=task)
                progress.start_task(task)
                try:
                    self._put_back()
                    model = sd_models.model_data.sd_model if trains else None
                    self._low_vram = _low_vram(model)
                    with _embeddings_listed(model), self._low_vram.set_aside():
                        yield WebuiLease(title)
                finally:
                    self._low_vram = LowVram(None)  # before another lease may set its own
                    progress.finish_task(task)
                    shared.state.end()
                    _forget_interrupts()
        finally:
            progress.pending_tasks.pop(task, None)
            if self.task_id == task:  # another one may wait by now
                self.task_id = None
            devices.torch_gc()

    def exchange(self, told: Sentence) -> Exchanged:
        """Backups that the Lora extension makes meanwhile are of these weights: they go when its own come back."""
        model = sd_models.model_data.sd_model
        take_out_prompt_networks(model)
        exchange = Exchanged(told, lambda: take_out_prompt_networks(model))
        with contextlib.ExitStack() as around:
            around.callback(_forget_prompts)
            around.enter_context(own_backups(model))
            around.enter_context(before_loading(self._put_back))
            _forget_prompts()
            exchange.around = around.pop_all()
        self._exchange = exchange
        return exchange

    def preview(self, request: PreviewRequest) -> Image.Image:
        """txt2img by the WebUI itself. Its picture is the run's: the user's last parameters stay as they are.

        The LoRAs of the user's last picture are taken out first: their backups are about to be put away.
        """
        kind = processing.StableDiffusionProcessingTxt2Img
        parameters = kind(
            sd_model=shared.sd_model,
            outpath_samples=str(self.cache_folder()),
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            steps=request.steps,
            cfg_scale=request.cfg_scale,
            sampler_name=request.sampler or sd_samplers.all_samplers[0].name,
            seed=request.seed,
            do_not_save_samples=True,
            do_not_save_grid=True,
            do_not_reload_embeddings=True,
            **(
                {"scheduler": "Automatic"} if hasattr(kind, "scheduler") else {}
            ),  # WebUI 1.9 has parted it from samplers
        )
        for name in PROMPT_CACHES:  # the encoding of an earlier step's words, or the user's, would be taken for ours
            if hasattr(parameters, name):
                setattr(parameters, name, [None, None])
        with contextlib.ExitStack() as stack:
            stack.enter_context(closing(parameters))
            stack.enter_context(_state_kept())
            if hasattr(shared.cmd_opts, "no_prompt_history"):
                stack.enter_context(attribute(shared.cmd_opts, "no_prompt_history", True))
            stack.enter_context(attribute(sd_models, "reload_model_weights", _keep_the_model))
            stack.enter_context(_option("CLIP_stop_at_last_layers", request.clip_skip))
            stack.enter_context(_option("sdxl_clip_l_skip", False))  # SDXL is trained on one layer, whatever the skip
            stack.enter_context(_noised_as_asked(request))
            stack.enter_context(self._low_vram.as_the_host_draws())
            # What the prompt's LoRAs put into the weights must come out of the same ones: a run may hold others there
            take_out_prompt_networks(shared.sd_model)
            stack.enter_context(own_backups(shared.sd_model))
            stack.callback(take_out_prompt_networks, shared.sd_model)
            images = processing.process_images(parameters).images
        if not images:
            raise ModelError("preview.interrupted")
        picture: Image.Image = images[0]
        shared.state.assign_current_image(picture)
        return picture

    def describe(self) -> str:
        model = sd_models.model_data.sd_model
        try:
            check_model(model)
        except ModelError as error:
            return str(error)
        info = model.sd_checkpoint_info
        kind = ", inpainting" if inpaints_in(model.model.diffusion_model) else ""
        told = f"{info.name_for_extra} [{info.shorthash}] · {family_of(model).word}{kind}"
        try:
            return f"{told} · {predicts_of(model).line}"
        except ModelError as error:
            return str(error)

    def samplers(self) -> Sequence[str]:
        return [sampler.name for sampler in sd_samplers.visible_samplers()]

    def lora_folder(self) -> Path:
        return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora")

    def embedding_folder(self) -> Path:
        return Path(shared.cmd_opts.embeddings_dir)

    def hypernetwork_folder(self) -> Path:
        return Path(shared.cmd_opts.hypernetwork_dir)

    def checkpoint_folder(self) -> Path:
        given = getattr(shared.cmd_opts, "ckpt_dir", None)
        return Path(given or Path(paths.models_path) / "Stable-diffusion")

    def prompt_files(self, folder: Path, endings: Sequence[str]) -> Mapping[str, Sequence[Path]]:
        """With what lies in folders below; of several files of one name the WebUI takes one, and does not say which."""
        return all_by_stem(folder, endings)

    def model_folders(self) -> Mapping[str, Sequence[Path]]:
        """The WebUI's own folders, and those that its command line names beside them."""
        models = Path(paths.models_path)
        named = {
            "checkpoints": ("ckpt_dir", "Stable-diffusion"),
            "loras": ("lora_dir", "Lora"),
            "vaes": ("vae_dir", "VAE"),
        }
        found = {}
        for kind, (option, folder) in named.items():
            given = getattr(shared.cmd_opts, option, None)
            found[kind] = list(dict.fromkeys([models / folder, *([Path(given)] if given else [])]))
        return found

    def template_folder(self) -> Path:
        return Path(shared.cmd_opts.textual_inversion_templates_dir)

    def token_count(self, text: str) -> int:
        tokenizer = tokenizer_of(sd_models.model_data.sd_model)
        return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    def parts(self) -> Mapping[str, HeldPart]:
        model, device = sd_models.model_data.sd_model, self.device()
        try:
            check_model(model)
        except ModelError:
            return {}
        kept_off = rests(model)
        return {part: HeldPart.of(root, device, rests=kept_off) for part, root in roots_of(model).items()}

    def added(self, path: Path) -> None:
        """Embeddings are read, the others appear in their lists."""
        _forget_prompts()
        folders = path.resolve().parents
        if self.embedding_folder().resolve() in folders:
            sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
        elif self.hypernetwork_folder().resolve() in folders:
            shared.reload_hypernetworks()
        elif self.checkpoint_folder().resolve() in folders:
            _list_checkpoints()
        elif self.lora_folder().resolve() in folders:
            _list_loras()

    def cache_folder(self) -> Path:
        given = getattr(shared.cmd_opts, "trainer_data_dir", None)
        return Path(given or Path(paths.data_path) / "trainer") / "cache"


class WebuiLease:
    """The WebUI's progress bar and its Interrupt button."""

    def __init__(self, title: str) -> None:
        self._title = title

    def progress(self, done: int, total: int, text: str) -> None:
        state = shared.state
        state.job_count, state.job_no = (1, 0) if total else (0, 0)
        state.sampling_step, state.sampling_steps = done, total
        state.textinfo = f"{self._title}: {text}"

    @property
    def interrupted(self) -> Sentence | str:
        return BUTTON if shared.state.interrupted or getattr(shared.state, "stopping_generation", False) else ""


def _low_vram(sd_model: Any) -> LowVram:
    """A model that cannot be trained is refused later, with what is wrong."""
    try:
        check_model(sd_model)
    except ModelError:
        return LowVram(None)
    return LowVram(sd_model, roots_of(sd_model).values() if rests(sd_model) else ())


def _embeddings_listed(sd_model: Any) -> contextlib.AbstractContextManager[None]:
    """A Refresh of the Textual Inversion tab finds the user's embeddings while a run has the model."""
    try:
        check_model(sd_model)
    except ModelError:
        return contextlib.nullcontext()
    return width_known(getattr(sd_hijack.model_hijack, "embedding_db", None), word_width(sd_model))


@contextlib.contextmanager
def _state_kept() -> Iterator[None]:
    """The WebUI's progress as the run has set it, and its console bar unused, however a generation in between ends."""
    state = {name: getattr(shared.state, name) for name in STATE_FIELDS if hasattr(shared.state, name)}
    try:
        yield
    finally:
        for name, value in state.items():
            setattr(shared.state, name, value)
        if hasattr(shared, "total_tqdm"):
            shared.total_tqdm.clear()


def _list_loras() -> None:
    """A prompt's new name alone would enter the list with the name in its metadata beside it, without a look at whether
    another file is called so: that one would no longer be found by its name."""
    networks = sys.modules.get("networks")
    if hasattr(networks, "list_available_networks"):
        networks.list_available_networks()  # type: ignore[union-attr]


def _list_checkpoints() -> None:
    """The menu of checkpoints anew. Listing them sets the one that is chosen back to that of `--ckpt`."""
    chosen = shared.opts.data.get("sd_model_checkpoint")
    try:
        sd_models.list_models()
    finally:
        if chosen is not None:
            shared.opts.data["sd_model_checkpoint"] = chosen


def _forget_prompts() -> None:
    """A prompt that was encoded before what it names was there is encoded anew."""
    for kind in (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in PROMPT_CACHES:
            if isinstance(cache := vars(kind).get(name), list):
                cache[:] = [None, None]


def _keep_the_model(*_: Any, **__: Any) -> Any:
    """`reload_model_weights` during a preview: a menu changed meanwhile would swap the model that is being trained.

    Whoever changed it waits in the WebUI's queue and has the new checkpoint loaded when the run has ended.
    """
    return shared.sd_model


@contextlib.contextmanager
def _noised_as_asked(request: PreviewRequest) -> Iterator[None]:
    """The samplers follow what the model is, or what the job says that it is, whatever the WebUI takes it for."""
    schedule = schedule_of(shared.sd_model).overruled(request.prediction, request.zero_terminal_snr)
    with contextlib.ExitStack() as stack:
        stack.enter_context(drawn_as(shared.sd_model, schedule))
        if schedule.zero_terminal:
            stack.enter_context(_option("sd_noise_schedule", ZERO_TERMINAL))
        elif request.zero_terminal_snr == "off":
            stack.enter_context(_option("sd_noise_schedule", "Default"))
        yield


@contextlib.contextmanager
def _option(name: str, value: object) -> Iterator[None]:
    """A setting for one picture. What the user chooses meanwhile stays; a request's own override would undo it."""
    data = shared.opts.data
    before = data.get(name)
    data[name] = value
    try:
        yield
    finally:
        if data.get(name) == value:
            if before is None:
                data.pop(name, None)
            else:
                data[name] = before


def _forget_interrupts() -> None:
    """An Interrupt that was meant for this run must not end the next generation."""
    for flag in ("skipped", "interrupted", "stopping_generation"):
        if hasattr(shared.state, flag):
            setattr(shared.state, flag, False)
