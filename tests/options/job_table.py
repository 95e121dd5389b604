"""Every option of a job: a value, and what must differ in a run that has it.

A row's run is its base's job with the row's value; rows of one base with the same `run` share a run, which is sound
where each of them expects a value of its own. Learning rates are next to nothing, so that the gradients of every step
are those of the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lib_trainer.families.sd1 import SD1
from lib_trainer.networks.formats.checkpoint_file import read_checkpoint
from lib_trainer.networks.formats.embedding_file import read_embedding
from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.ports import PreviewRequest
from lib_trainer.work import events as ev
from tests.options.seen import Group, Seen

RATE = 1e-9
"""Of all bases."""

CALM: dict[str, Any] = {
    "training.max_steps": 2,
    "optimizer.unet_lr": RATE,
    "optimizer.text_encoder_lr": RATE,
    "optimizer.weight_decay": 0.0,
    "optimizer.max_gradient_norm": 0.0,
    "embedding.learning_rate": RATE,
    "embedding.norm_decay": 0.0,
    "hypernetwork.learning_rate": RATE,
    "finetune.unet_lr": RATE,
    "preview.prompt": "a thing",
    "preview.every": 2,
    "prior.class_pictures": 1,
}
WORDS = CALM | {"network.kind": "embedding", "output.name": "zrk-a", "embedding.initial_text": "disc red"}
SHAPES = CALM | {"dataset.folder": "ROOT/shapes", "dataset.width": 128, "dataset.height": 128, "buckets.low": 64}
HELD = CALM | {"validation.pictures": "share", "validation.levels": 1}
BASES: dict[str, dict[str, Any]] = {
    "lora": CALM,
    "narrow": CALM | {"network.rank": 3, "optimizer.unet_lr": 1e-2, "output.name": "narrow"},
    "locon": CALM | {"network.kind": "locon"},
    "loha": CALM | {"network.kind": "loha"},
    "lokr": CALM | {"network.kind": "lokr", "network.rank": 1},
    "v": CALM | {"model.prediction": "v"},
    "warm-up": CALM | {"training.max_steps": 4, "optimizer.schedule": "constant"},
    "strong": CALM | {"optimizer.unet_lr": 1.0, "network.rank": 3},
    "two encoders": CALM,
    "two tuned": CALM | {"network.kind": "checkpoint"},
    "tuned text": CALM | {"network.kind": "checkpoint", "finetune.text_encoder_lr": RATE},
    "cosine": CALM | {"optimizer.schedule": "cosine"},
    "restarts": CALM | {"training.max_steps": 4, "optimizer.schedule": "cosine_with_restarts"},
    "polynomial": CALM | {"training.max_steps": 4, "optimizer.schedule": "polynomial"},
    "decay": CALM | {"training.max_steps": 4, "optimizer.schedule": "warmup_stable_decay"},
    "by path": CALM | {"optimizer.name": "by path", "optimizer.class_path": "torch.optim.RMSprop"},
    "offset": CALM | {"noise.offset": 0.5},
    "pyramid": CALM | {"noise.pyramid_iterations": 6},
    "perturbed": CALM | {"noise.perturbation": 0.5},
    "logit-normal": CALM | {"noise.distribution": "logit_normal"},
    "huber": CALM | {"loss.type": "huber"},
    "min-SNR": CALM | {"loss.weighting": "min_snr"},
    "debiased v": CALM | {"loss.weighting": "debiased", "model.prediction": "v"},
    "four levels": CALM | {"training.max_steps": 8, "noise.min_timestep": 450, "noise.max_timestep": 550},
    "tags": CALM | {"training.max_steps": 8},
    "shuffled": CALM | {"training.max_steps": 8, "captions.shuffle": True},
    "thinned": CALM | {"training.max_steps": 8, "captions.tag_dropout": 0.9},
    "prompts": CALM | {"captions.prefix": "(two:1.5)"},
    "choices": CALM | {"captions.prefix": "{two|2}"},
    "two epochs": CALM | {"training.max_steps": 0, "training.epochs": 2},
    "epochs": CALM | {"training.max_steps": 0, "training.epochs": 1},
    "no buckets": SHAPES,
    "shapes": SHAPES | {"buckets.enabled": True},
    "colours": CALM | {"augment.colour": 0.2},
    "with masks": CALM | {"dataset.folder": "ROOT/masked"},
    "masked": CALM | {"dataset.folder": "ROOT/masked", "masks.source": "file"},
    "inpainting": CALM | {"dataset.folder": "ROOT/masked", "masks.source": "file"},
    "strongly masked": CALM
    | {"dataset.folder": "ROOT/masked", "masks.source": "file", "optimizer.unet_lr": 1e-2, "network.rank": 3},
    "preserved": CALM | {"optimizer.unet_lr": 1e-2, "network.rank": 3, "preserve.weight": 1.0},
    "class": CALM | {"prior.class_prompt": "circle"},
    "taken": CALM,
    "held": HELD,
    "six held": HELD | {"dataset.folder": "ROOT/shapes"},
    "held folder": HELD | {"validation.pictures": "folder", "validation.folder": "ROOT/others"},
    "getting worse": HELD | {"training.max_steps": 12, "validation.every": 1, "optimizer.unet_lr": 0.5},
    "embedding": WORDS,
    "random words": WORDS | {"embedding.initial_text": ""},
    "pivotal": CALM | {"network.kind": "pivotal", "embedding.names": "zrk-a"},
    "hypernetwork": CALM | {"network.kind": "hypernetwork"},
    "checkpoint": CALM | {"network.kind": "checkpoint"},
    "quick checkpoint": CALM | {"network.kind": "checkpoint", "finetune.unet_lr": 1e-2},
    "average": CALM | {"network.kind": "checkpoint", "finetune.unet_lr": 1e-2, "optimizer.ema": True},
    "difference": CALM
    | {
        "network.kind": "difference",
        "dataset.folder": "ROOT/after",
        "difference.before": "ROOT/before.png",
        "training.max_steps": 3,
    },
}


@dataclass(frozen=True)
class Row:
    """`sees` takes from a run what the option decides. `expected` is that, or a judge of (changed, base)."""

    option: str
    value: Any
    sees: Callable[[Seen], Any]
    expected: Any
    base: str = "lora"
    run: str = ""

    @property
    def name(self) -> str:
        shown = str(self.value).replace("ROOT/", "").replace("/", "-")
        return f"{self.option}={shown} ({self.base})"


@dataclass(frozen=True)
class Judge:
    """Of what a changed run shows beside its base."""

    what: str
    holds: Callable[[Any, Any], bool]


def differs(now: Any, before: Any) -> bool:
    if isinstance(now, torch.Tensor):
        return now.shape != before.shape or not torch.allclose(now, before, rtol=1e-3, atol=0)
    return bool(now != before)


DIFFERS = Judge("something else", differs)


def times(factor: float) -> Judge:
    return Judge(f"{factor} times it", lambda now, before: torch.allclose(now, before * factor, rtol=1e-3, atol=1e-7))


# ------------------------------------------------------------------------------------------- what is read of a run


def drawn(name: str, prompt: str = "") -> Callable[[Seen], Any]:
    """A field of the first picture that the host was asked to draw, or the first with this prompt."""

    def read(seen: Seen) -> Any:
        requests = [one for one in seen.previews if not prompt or one.prompt == prompt]
        return getattr(requests[0], name) if requests else None

    return read


def channel_shift(seen: Seen) -> float:
    """How far the means of the channels of what the UNet is shown lie apart, over all steps."""
    return float(torch.stack([one.mean(dim=(2, 3)).std() for one in seen.latents]).mean())


def measured_steps(seen: Seen) -> list[int]:
    return [one.step for one in seen.of(ev.Measured)]


def held_out(seen: Seen) -> int:
    """How many pictures are held out."""
    notes = [one.text for one in seen.of(ev.Message) if getattr(one.text, "code", "") == "validation.held_out"]
    return int(notes[0].facts["count"])


def class_requests(seen: Seen) -> list[PreviewRequest]:
    return [one for one in seen.previews if one.prompt not in ("a thing", "another")]


def result(seen: Seen) -> dict[str, torch.Tensor]:
    """The tensors of the LoRA that was written."""
    (path,) = (path for name, path in seen.files.items() if name.startswith("lora/") and name.endswith(".safetensors"))
    return read_lora(path).tensors


def downs(seen: Seen, spatial: bool = False) -> set[int]:
    """Ranks of what LoRA trains, or of the 3×3 convolutions."""
    found = {name: one for name, one in result(seen).items() if name.endswith("lora_down.weight")}
    return {one.shape[0] for one in found.values() if (one.ndim == 4 and one.shape[-1] == 3) == spatial}


def alphas(seen: Seen, spatial: bool = False) -> set[float]:
    tensors = result(seen)
    large = {name.partition(".")[0] for name, one in tensors.items() if one.ndim == 4 and one.shape[-1] == 3}
    found = {name.partition(".")[0]: float(one) for name, one in tensors.items() if name.endswith(".alpha")}
    return {round(alpha, 4) for key, alpha in found.items() if (key in large) == spatial}


def suffixes(seen: Seen) -> set[str]:
    return {name.partition(".")[2] for name in result(seen)}


def dtypes(seen: Seen) -> set[torch.dtype]:
    return {one.dtype for name, one in result(seen).items() if not name.endswith(".alpha")}


def small_factors(seen: Seen) -> set[int]:
    return {one.shape[0] for name, one in result(seen).items() if name.endswith("lokr_w1")}


def blocks_of(seen: Seen) -> set[str]:
    return {"_".join(name.split("_")[2:4]) for name in result(seen) if "_unet_" in name}


def rank_of(part: str) -> Callable[[Seen], set[int]]:
    return lambda seen: {one.shape[0] for name, one in result(seen).items() if part in name and "lora_down" in name}


def norm(seen: Seen) -> float:
    return float(seen.gradient(1).norm())


def gradient(seen: Seen) -> torch.Tensor:
    return seen.gradient(1)


def lora_ups(seen: Seen) -> list[torch.Tensor]:
    """Gradients of the second factors of an adapter whose tensors stand by themselves, as with dropouts."""
    given = [one for group in seen.steps[0] for one in group.gradients[1::2]]
    return [one for one in given if one is not None]


def partly_silent(seen: Seen) -> bool:
    """Whether some ranks of an adapter learn nothing at a step while others of it do."""

    def part(one: torch.Tensor) -> bool:
        still = (one.flatten(1) == 0).all(0)
        return bool(still.any()) and not bool(still.all())

    return sum(part(one) for one in lora_ups(seen)) > len(lora_ups(seen)) // 2


def silent_share(seen: Seen) -> float:
    """Share of adapters that learn nothing at the first step."""
    ups = [group.gradients[1::2] for group in seen.steps[0]]
    flat = [one for own in ups for one in own]
    return sum(one is None or not bool(one.any()) for one in flat) / max(1, len(flat))


def group(seen: Seen, name: str) -> Group:
    return next(one for one in seen.steps[0] if one.name == name)


def rate_of(name: str) -> Callable[[Seen], float]:
    return lambda seen: next((one.rate for one in seen.steps[0] if one.name == name), 0.0)


def text_steps(seen: Seen) -> int:
    """Steps in which the text encoder learns."""
    own = [[one for one in groups if one.name == "te1"] for groups in seen.steps]
    return sum(any(one is not None for group in groups for one in group.gradients) for groups in own)


def largest_norm(seen: Seen) -> float:
    """Of what a module of the LoRA adds to its layer."""
    tensors, found = result(seen), []
    for name in [name for name in tensors if name.endswith("lora_up.weight")]:
        key = name.partition(".")[0]
        up, down = tensors[name].float().flatten(1), tensors[f"{key}.lora_down.weight"].float().flatten(1)
        found.append(float((up @ down).norm() * tensors[f"{key}.alpha"].float() / len(down)))
    return max(found)


def factors(seen: Seen) -> list[float]:
    """The schedule: each step's rate as a share of the bases'."""
    return [round(next(iter(step.values())) / RATE, 6) for step in seen.rates()]


def names_in(*folders: str) -> Callable[[Seen], set[str]]:
    """Names of files below these folders, without cards."""

    def read(seen: Seen) -> set[str]:
        found = {name for name in seen.files if name.partition("/")[0] in folders}
        return {name for name in found if not name.endswith((".json", ".preview.png"))}

    return read


def rows_of(seen: Seen) -> torch.Tensor:
    """The first embedding that was written."""
    return read_embedding(seen.root / min(names_in("embeddings")(seen)))["te1"]


def bundled(seen: Seen) -> dict[str, Any]:
    (path,) = (path for name, path in seen.files.items() if name.startswith("lora/") and name.endswith(".safetensors"))
    return {word: rows["te1"] for word, rows in read_lora(path).embeddings(SD1).items()}


def structure(name: str) -> Callable[[Seen], Any]:
    return lambda seen: getattr(_hypernetwork(seen).structure, name)


def _hypernetwork(seen: Seen) -> Any:
    return read_hypernetwork(seen.files["hypernetworks/learned.pt"])


def first_weight(seen: Seen) -> torch.Tensor:
    weight: torch.Tensor = next(iter(_hypernetwork(seen).keys.values()))[0].weight.detach()
    return weight


def checkpoint(seen: Seen) -> dict[str, torch.Tensor]:
    return read_checkpoint(seen.files["checkpoints/learned.safetensors"])


def unet_weight(seen: Seen) -> torch.Tensor:
    return checkpoint(seen)["model.diffusion_model.input_blocks.0.0.weight"].float()


def pixel_sizes(seen: Seen) -> set[tuple[int, int]]:
    """(width, height) of what the VAE is given."""
    return {(one.shape[3], one.shape[2]) for one in seen.pixels}


def told(seen: Seen) -> list[str]:
    """The captions of the steps of a run whose batches are of one picture."""
    return [caption for captions, _, _ in seen.texts for caption in captions]


def class_step(seen: Seen) -> int:
    """The step that shows a class picture (from 1 on); the text encoder is called once for each step."""
    in_steps = [captions for captions, _, _ in seen.texts][-len(seen.steps) :]
    return next(number for number, captions in enumerate(in_steps, 1) if captions == ("circle",))


def of_class(seen: Seen) -> torch.Tensor:
    return seen.gradient(class_step(seen))


def before_steps(seen: Seen) -> int:
    """Steps in which the LoRA of the picture before learns."""
    own = [[one for one in groups if one.name.endswith("before")] for groups in seen.steps]
    return sum(any(one is not None for group in groups for one in group.gradients) for groups in own)


def both_steps(seen: Seen) -> torch.Tensor:
    """The mean of the gradients of two batches, whether they were accumulated or shown one by one."""
    if len(seen.latents) > len(seen.steps):
        return seen.gradient(1)
    return (seen.gradient(1) + seen.gradient(2)) / 2


# ----------------------------------------------------------------------------------------------------- the table

SAMPLE = "drawn"
"""A run in which many options have another value, each of which is asked back by itself."""

JOBS: list[Row] = [
    # what the model is
    Row("model.prediction", "v", gradient, DIFFERS, run="model"),
    Row("model.prediction", "v", drawn("prediction"), "v", run="model"),
    Row("model.zero_terminal_snr", "on", lambda seen: seen.latents[0], DIFFERS, "v", "noised"),
    Row("model.zero_terminal_snr", "on", drawn("zero_terminal_snr"), "on", "v", "noised"),
    # what is trained
    Row("network.kind", "loha", suffixes, Judge("LoHa", lambda now, before: "hada_w1_a" in now and now != before)),
    Row("network.kind", "lokr", suffixes, Judge("LoKr", lambda now, before: "lokr_w1" in now and now != before)),
    Row("network.rank", 3, downs, {3}, run=SAMPLE),
    Row("network.alpha", 1.5, alphas, {1.5}, run=SAMPLE),
    Row("network.alpha", 1.0, gradient, times(0.5)),
    Row("network.conv_rank", 2, lambda seen: downs(seen, True), {2}, "locon", SAMPLE),
    Row("network.conv_alpha", 3.0, lambda seen: alphas(seen, True), {3.0}, "locon", SAMPLE),
    Row("network.factor", 4, small_factors, {4}, "lokr", SAMPLE),
    Row("network.decompose_both", True, lambda seen: "lokr_w1_a" in suffixes(seen), True, "lokr"),
    Row("network.dora", True, lambda seen: "dora_scale" in suffixes(seen), True),
    Row("network.rank_stabilised", True, alphas, {4.0}),
    Row("network.rank_stabilised", True, gradient, times(2.0)),
    Row("network.dropout", 0.5, gradient, DIFFERS),
    Row("network.rank_dropout", 0.75, partly_silent, True),
    Row("network.module_dropout", 0.75, lambda seen: silent_share(seen) > 0.5, True),
    Row("network.continue_from", "FILE:narrow", downs, {3}),
    Row("network.continue_from", "FILE:random words", rows_of, DIFFERS, "embedding"),
    Row("network.continue_from", "FILE:quick checkpoint", unet_weight, DIFFERS, "checkpoint"),
    Row("blocks.preset", "middle", blocks_of, {"mid_block"}),
    Row("blocks.rates", "middle=0.5", rate_of("unet ×0.5"), RATE / 2, run="blocks"),
    Row("blocks.ranks", "middle=2", rank_of("_mid_block_"), {2}, run="blocks"),
    # embeddings
    Row("embedding.names", "zrk-b, zrk-c", names_in("embeddings"),
        {"embeddings/zrk-b.pt", "embeddings/zrk-c.pt"}, "random words", SAMPLE),
    Row("embedding.format", "pt", lambda seen: {name[-3:] for name in names_in("embeddings")(seen)}, {".pt"},
        "random words", SAMPLE),
    Row("embedding.vectors", 3, lambda seen: rows_of(seen).shape[0], 3, "random words", SAMPLE),
    Row("embedding.learning_rate", 0.25, rate_of("embedding"), 0.25, "random words", SAMPLE),
    Row("embedding.initial_text", "disc", rows_of, DIFFERS, "random words"),
    Row("embedding.norm_decay", 1.0, lambda seen: rows_of(seen).norm(dim=1).std(), Judge(
        "vectors of one length", lambda now, before: float(now) < 1e-4 < float(before)), "embedding"),
    Row("embedding.names", "zrk-b", lambda seen: set(bundled(seen)), {"zrk-b"}, "pivotal", SAMPLE),
    Row("embedding.vectors", 3, lambda seen: {len(one) for one in bundled(seen).values()}, {3}, "pivotal", SAMPLE),
    Row("embedding.learning_rate", 0.25, rate_of("embedding"), 0.25, "pivotal", SAMPLE),
    # hypernetworks
    Row("hypernetwork.layer_structure", "1, 3, 2, 1", structure("layers"), (1, 3, 2, 1), "hypernetwork", SAMPLE),
    Row("hypernetwork.dropout_structure", "0, 0.25, 0.5, 0", structure("dropouts"), (0, 0.25, 0.5, 0), "hypernetwork",
        SAMPLE),
    Row("hypernetwork.activation", "relu", structure("activation"), "relu", "hypernetwork", SAMPLE),
    Row("hypernetwork.layer_norm", True, structure("layer_norm"), True, "hypernetwork", SAMPLE),
    Row("hypernetwork.activate_output", True, structure("activate_output"), True, "hypernetwork", SAMPLE),
    Row("hypernetwork.sizes", "32", lambda seen: _hypernetwork(seen).sizes, (32,), "hypernetwork", SAMPLE),
    Row("hypernetwork.learning_rate", 0.25, rate_of("hypernetwork"), 0.25, "hypernetwork", SAMPLE),
    Row("hypernetwork.initialisation", "XavierNormal", lambda seen: float(first_weight(seen).std()) > 0.05, True,
        "hypernetwork", SAMPLE),
    # whole checkpoints
    Row("finetune.unet_lr", 0.25, rate_of("unet"), 0.25, "checkpoint", SAMPLE),
    Row("finetune.text_encoder_2_lr", 0.5, rate_of("te2"), 0.5, "two tuned"),
    Row("finetune.text_encoder_lr", 0.125, rate_of("te1"), 0.125, "checkpoint", SAMPLE),
    Row("finetune.difference_rank", 2, lambda seen: downs(seen) if names_in("lora")(seen) else set(), {2},
        "quick checkpoint"),
    Row("optimizer.ema", True, unet_weight, DIFFERS, "quick checkpoint"),
    Row("optimizer.ema_decay", 0.0, unet_weight, DIFFERS, "average"),
    # pairs
    Row("difference.before", "ROOT/earlier.png", lambda seen: torch.cat(seen.pixels), DIFFERS, "difference"),
    Row("difference.base_steps", 2, before_steps, 2, "difference"),
    # pictures and captions
    Row("dataset.folder", "ROOT/others", lambda seen: any("blue disc" in one for one in seen.captions), True),
    Row("dataset.trigger_word", "blip", lambda seen: any(one.startswith("blip, ") for one in seen.captions), True,
        run=SAMPLE),
    Row("dataset.template", "ROOT/template.txt", lambda seen: seen.captions, {"learned seen from afar"},
        "hypernetwork"),
    Row("dataset.caption_lines", "first", lambda seen: any("thing" in one for one in seen.captions), False, run=SAMPLE),
    Row("captions.shuffle", True, lambda seen: any(one.startswith("zork, round") for one in seen.captions), True,
        "tags"),
    Row("captions.keep_tokens", 1, lambda seen: all(one.startswith("zork, red") for one in seen.captions), True,
        "shuffled"),
    Row("captions.tag_dropout", 0.5, lambda seen: any("red" not in one for one in seen.captions), True, "tags"),
    Row("captions.never_drop", "red disc *", lambda seen: all("red" in one for one in seen.captions), True, "thinned"),
    Row("captions.only_drop", "/round/", lambda seen: all("red" in one for one in seen.captions), True, "thinned"),
    Row("captions.warmup", 4, lambda seen: "round" not in told(seen)[0], True, "tags"),
    Row("captions.dropout", 0.5, lambda seen: "" in seen.captions, True, "tags"),
    Row("captions.dropout_epochs", 2, lambda seen: [not one for one in told(seen)], [False] * 3 + [True] * 3,
        "two epochs"),
    Row("captions.wildcards", True, lambda seen: all(one[:2] in ("tw", "2 ") for one in seen.captions), True,
        "choices"),
    Row("captions.prefix", "seen:", lambda seen: all(one.startswith("seen: zork, ") for one in seen.captions), True,
        run="around"),
    Row("captions.suffix", ", seen", lambda seen: all(one.endswith(", seen") for one in seen.captions), True,
        run="around"),
    Row("dataset.width", 128, lambda seen: seen.latents[0].shape[3], 16, run=SAMPLE),
    Row("dataset.height", 192, lambda seen: seen.latents[0].shape[2], 24, run=SAMPLE),
    Row("captions.weights", True, norm, DIFFERS, "prompts"),
    Row("dataset.caption_files", ".cap", lambda seen: seen.captions, {"zork, other"}),
    Row("dataset.second_captions", ".cap", lambda seen: {type(one) for one in seen.captions if one}, {tuple},
        "two encoders"),
    Row("dataset.repeats", 2, lambda seen: seen.total, 6, "epochs"),
    Row("dataset.repeats", 0.4, lambda seen: seen.total, 1, "epochs"),
    Row("buckets.enabled", True, pixel_sizes, {(192, 64), (128, 128)}, "no buckets"),
    Row("buckets.resolutions", "64", pixel_sizes, {(192, 64), (128, 128), (64, 64)}, "shapes"),
    Row("buckets.step", 128, pixel_sizes, {(128, 128)}, "shapes"),
    Row("buckets.low", 128, pixel_sizes, {(128, 128)}, "shapes"),
    Row("buckets.high", 128, pixel_sizes, {(128, 64), (128, 128)}, "shapes"),
    Row("buckets.enlarge", False, pixel_sizes, {(128, 64), (192, 64), (64, 64)}, "shapes"),
    Row("augment.mirror", True, lambda seen: len(seen.pixels), 6),
    Row("augment.mirror", True, lambda seen: torch.equal(seen.pixels[0].flip(3), seen.pixels[1]), True),
    Row("augment.crop", True, lambda seen: torch.cat(seen.pixels), DIFFERS, "no buckets"),
    Row("augment.colour", 0.5, lambda seen: torch.cat(seen.pixels), DIFFERS),
    Row("augment.grey", 1.0, lambda seen: all(torch.equal(one[:, 0], one[:, 2]) for one in seen.pixels), True),
    Row("augment.count", 2, lambda seen: len(seen.pixels), 6, "colours"),
    Row("masks.source", "file", gradient, DIFFERS, "with masks"),
    Row("masks.source", "alpha", lambda seen: "no picture is transparent" in seen.refused, True),
    Row("masks.folder", "ROOT/masks", gradient, DIFFERS, "masked"),
    Row("masks.outside", 0.5, gradient, DIFFERS, "masked"),
    Row("masks.normalise", False, gradient, times(0.375), "masked"),
    Row("inpainting.holes", "masks", lambda seen: seen.latents[0][:, 4], DIFFERS, "inpainting"),
    Row("inpainting.count", 1, lambda seen: len(seen.pixels), 6, "inpainting"),
    Row("masks.prior", 2.0, lambda seen: seen.gradient(2), DIFFERS, "strongly masked"),
    Row("preserve.weight", 2.0, lambda seen: seen.gradient(2), DIFFERS, "preserved"),
    Row("preserve.caption", "round, [filewords]", lambda seen: any(
        one.startswith("round, ") and "zork" not in one for one in seen.captions), True, "preserved"),
    Row("dataset.cache", "disk", lambda seen: len(names_in("cache")(seen)), 3),
    # class pictures
    Row("prior.class_prompt", "circle", lambda seen: [one.prompt for one in class_requests(seen)], ["circle"]),
    Row("prior.class_pictures", 2, lambda seen: len(class_requests(seen)), 2, "class", SAMPLE),
    Row("prior.class_folder", "ROOT/class", lambda seen: sum("class-" in name for name in seen.files), 0, "class",
        SAMPLE),
    Row("prior.weight", 0.5, of_class, times(0.5), "class"),
    Row("preview.cfg_scale", 3.0, drawn("cfg_scale", "circle"), 3.0, "class", SAMPLE),
    Row("preview.steps", 3, drawn("steps", "circle"), 3, "class", SAMPLE),
    Row("preview.sampler", "Euler", drawn("sampler", "circle"), "Euler", "class", SAMPLE),
    Row("dataset.width", 128, drawn("width", "circle"), 128, "class", SAMPLE),
    Row("dataset.height", 192, drawn("height", "circle"), 192, "class", SAMPLE),
    Row("training.clip_skip", 2, drawn("clip_skip", "circle"), 2, "class", SAMPLE),
    Row("training.seed", 77, drawn("seed", "circle"), 77, "class", SAMPLE),
    # learning
    Row("optimizer.name", "AdamW8bit", lambda seen: "AdamW8bit" in seen.refused, True),
    Row("optimizer.name", "SGDNesterov", lambda seen: group(seen, "unet").kind, "SGD"),
    Row("optimizer.class_path", "torch.optim.Adagrad", lambda seen: group(seen, "unet").kind, "Adagrad", "by path"),
    Row("optimizer.arguments", "betas=(0.5, 0.75)", lambda seen: group(seen, "unet").settings["betas"], (0.5, 0.75),
        run=SAMPLE),
    Row("optimizer.unet_lr", 0.25, rate_of("unet"), 0.25, run=SAMPLE),
    Row("optimizer.text_encoder_2_lr", 0.5, rate_of("te2"), 0.5, "two encoders"),
    Row("optimizer.text_encoder_lr", 0.125, rate_of("te1"), 0.125, run=SAMPLE),
    Row("optimizer.schedule", "cosine", factors, [1.0, 0.5]),
    Row("optimizer.schedule", "linear", factors, [1.0, 0.75, 0.5, 0.25], "warm-up"),
    Row("optimizer.warmup", 2.0, factors, [0.5, 1.0, 1.0, 1.0], "warm-up"),
    Row("optimizer.text_encoder_share", 0.5, text_steps, 1),
    Row("finetune.text_encoder_share", 0.5, text_steps, 1, "tuned text"),
    Row("optimizer.lora_plus", 16.0, rate_of("unet B"), 16 * RATE, run="plus"),
    Row("network.max_norm", 0.01, largest_norm, Judge(
        "no module above it", lambda now, before: now <= 0.0101 < before), "strong"),
    Row("optimizer.cycles", 2, factors, [1.0, 0.5, 1.0, 0.5], "restarts"),
    Row("optimizer.power", 2.0, factors, [1.0, 0.5625, 0.25, 0.0625], "polynomial"),
    Row("optimizer.decay_share", 0.5, factors, [1.0, 1.0, 1.0, 0.5], "decay"),
    Row("optimizer.floor", 0.5, factors, [1.0, 0.75], "cosine"),
    Row("optimizer.weight_decay", 0.5, lambda seen: group(seen, "unet").decay, 0.5, run=SAMPLE),
    Row("optimizer.max_gradient_norm", 0.001, norm, Judge(
        "a norm of 0.001", lambda now, before: math.isclose(now, 0.001, rel_tol=1e-3) and before > 0.01), run=SAMPLE),
    # noise and loss
    Row("noise.offset", 0.5, channel_shift, Judge("whole channels are moved", lambda now, before: now > 2 * before)),
    Row("noise.offset_random", True, lambda seen: seen.latents[0], DIFFERS, "offset"),
    Row("noise.offset_adaptive", 0.5, lambda seen: seen.latents[0], DIFFERS, "offset"),
    Row("noise.pyramid_iterations", 6, channel_shift, Judge("coarse noise", lambda now, before: now > 2 * before)),
    Row("noise.pyramid_discount", 0.9, lambda seen: seen.latents[0], DIFFERS, "pyramid"),
    Row("noise.perturbation", 0.5, lambda seen: seen.latents[0], DIFFERS),
    Row("noise.perturbation_random", True, lambda seen: seen.latents[0], DIFFERS, "perturbed"),
    Row("noise.distribution", "logit_normal", lambda seen: seen.timesteps, DIFFERS),
    Row("noise.location", 4.0, lambda seen: min(seen.timesteps) > 900, True, "logit-normal"),
    Row("noise.spread", 0.1, lambda seen: seen.timesteps, DIFFERS, "logit-normal"),
    Row("noise.shift", 20.0, lambda seen: seen.timesteps, DIFFERS),
    Row("noise.min_timestep", 990, lambda seen: min(seen.timesteps) >= 990, True),
    Row("noise.max_timestep", 5, lambda seen: max(seen.timesteps) < 5, True),
    Row("loss.type", "l1", gradient, DIFFERS),
    Row("loss.huber_c", 0.01, gradient, DIFFERS, "huber"),
    Row("loss.huber_schedule", "constant", gradient, DIFFERS, "huber"),
    Row("loss.huber_scale", 0.1, gradient, DIFFERS, "huber"),
    Row("loss.weighting", "debiased", gradient, DIFFERS),
    Row("loss.min_snr_gamma", 0.01, gradient, DIFFERS, "min-SNR"),
    Row("loss.debiased_v", "root", gradient, DIFFERS, "debiased v"),
    Row("loss.learned_weights", True, lambda seen: seen.gradient(8), DIFFERS, "four levels"),
    # the run
    Row("training.epochs", 2, lambda seen: seen.total, 6, "epochs"),
    Row("training.max_steps", 1, lambda seen: len(seen.steps), 1),
    Row("training.batch_size", 2, lambda seen: max(one.shape[0] for one in seen.latents), 2, run=SAMPLE),
    Row("training.gradient_accumulation", 2, lambda seen: len(seen.latents), 3),
    Row("training.gradient_accumulation", 2, both_steps, Judge(
        "the mean of both batches", lambda now, before: torch.allclose(now, before, rtol=1e-3, atol=1e-7))),
    Row("training.precision", "bf16", lambda seen: seen.latents[0].dtype, torch.bfloat16, run="held"),
    Row("training.precision", "bf16", lambda seen: seen.states[0].dtype, torch.bfloat16, run="held"),
    Row("training.weights", "fp8", lambda seen: seen.states[0].eight_bits, True, run="held"),
    Row("training.gradient_checkpointing", True, lambda seen: seen.states[0].checkpointing, True, run="held"),
    Row("training.cuda_graphs", "off", lambda seen: len(seen.recorders), 0),
    Row("training.seed", 77, lambda seen: seen.latents[0], DIFFERS, run="seed"),
    Row("training.seed", 77, lambda seen: next(
        one for name, one in result(seen).items() if name.endswith("lora_down.weight")), DIFFERS, run="seed"),
    Row("training.clip_skip", 2, lambda seen: {skip for _, skip, _ in seen.texts}, {2}, run=SAMPLE),
    Row("training.clip_skip", 2, drawn("clip_skip"), 2, run=SAMPLE),
    Row("training.max_tokens", 75, lambda seen: {chunks for _, _, chunks in seen.texts}, {1}, run=SAMPLE),
    # what is held out
    Row("validation.pictures", "share", measured_steps, [0, 2], run="share"),
    Row("validation.share", 0.5, held_out, 2, "six held"),
    Row("validation.folder", "ROOT/shapes", lambda seen: seen.of(ev.Measured)[0].held_out, DIFFERS, "held folder"),
    Row("validation.every", 1, measured_steps, [0, 1, 2], "held"),
    Row("validation.levels", 2, lambda seen: seen.of(ev.Measured)[0].held_out, DIFFERS, "held"),
    Row("validation.trained", False, lambda seen: seen.of(ev.Measured)[0].trained, None, "held"),
    Row("validation.keep_best", False, names_in("lora"), {"lora/learned.safetensors"}, "held"),
    Row("validation.patience", 1, lambda seen: len(seen.of(ev.StepDone)), Judge(
        "fewer steps", lambda now, before: now < before == 12), "getting worse"),
    Row("validation.seed", 2, lambda seen: seen.of(ev.Measured)[0].held_out, DIFFERS, "held"),
    # the file
    Row("output.name", "other", names_in("lora"), {"lora/other.safetensors"}, run=SAMPLE),
    Row("output.existing", "number", names_in("lora"), {"lora/learned.safetensors", "lora/learned-2.safetensors"},
        "taken"),
    Row("output.existing", "replace", lambda seen: any(".trainer-trash" in name for name in seen.files), True, "taken"),
    Row("output.folder", "ROOT/elsewhere", names_in("lora"), set(), run="elsewhere"),
    Row("output.save_every", 1, names_in("lora"),
        {"lora/learned-step00000001.safetensors", "lora/learned.safetensors"}),
    Row("output.precision", "fp16", dtypes, {torch.float16}, run=SAMPLE),
    Row("output.precision", "bf16", dtypes, {torch.bfloat16}, "pivotal", SAMPLE),
    Row("output.precision", "bf16", dtypes, {torch.bfloat16}, "difference"),
    Row("output.precision", "bf16", lambda seen: checkpoint(seen)[
        "model.diffusion_model.input_blocks.0.0.weight"].dtype, torch.bfloat16, "checkpoint", SAMPLE),
    # previews
    Row("preview.prompt", "another", drawn("prompt"), "another", run=SAMPLE),
    Row("preview.prompt", "one --d 5\ntwo", lambda seen: [(one.prompt, one.seed) for one in seen.previews],
        [("one", 5), ("two", 1)], run="two prompts"),
    Row("preview.negative_prompt", "blurred", drawn("negative_prompt"), "blurred", run=SAMPLE),
    Row("preview.every", 1, lambda seen: len(seen.previews), 2, run=SAMPLE),
    Row("preview.at_start", True, lambda seen: [one.step for one in seen.of(ev.PreviewMade)], [0, 2], run="at start"),
    Row("preview.width", 256, drawn("width"), 256, run=SAMPLE),
    Row("preview.height", 320, drawn("height"), 320, run=SAMPLE),
    Row("preview.steps", 3, drawn("steps"), 3, run=SAMPLE),
    Row("preview.cfg_scale", 3.0, drawn("cfg_scale"), 3.0, run=SAMPLE),
    Row("preview.sampler", "Euler", drawn("sampler"), "Euler", run=SAMPLE),
    Row("preview.seed", 9, drawn("seed"), 9, run=SAMPLE),
]  # fmt: skip

WITHOUT_EFFECT = {"model.checkpoint": "a run trains the checkpoint that is loaded; the command line alone reads it"}
"""Options that no run reads, with the reason."""
