"""Train a miniature of another family (recipes.py), starting from the SD1 miniature's weights wherever shapes fit.

`python -m miniature.train_family sdxl --work FOLDER` writes FOLDER/sdxl.pt, with snapshots while it runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .common import SCALING_FACTOR, Learner, save
from .export import build_pipeline
from .family_layout import fill
from .recipes import RECIPES, Encoder, Recipe
from .text import END_ID, batch_of, known_ids, with_junk
from .train_diffusion import EMPTY_CAPTIONS, MEAN_WEIGHT, alphas_cumprod
from .world import Scene, caption, combos, draw, is_held_out, random_scene

SIDE, CAPTIONS, REPEATS = 64, 32, 2
"""Pixels; captions in a batch; how often each one's scene is taken, with other noise and times."""
POOLED_ALONE, SECOND_ALONE = 0.08, 0.12
"""Shares of the captions that SDXL's UNet reads by the pooled vector alone, and by the second encoder alone."""
VECTOR = "add_embedding.linear_1."
"""The layer that reads the pooled vector and the sizes."""
VIEWS = 0.15
"""Share of the pictures that are crops or were scaled up, so that the size numbers say something."""

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class View:
    """How a scene became a picture of 64x64: drawn at (height, width), scaled up if smaller, cropped at (top, left)."""

    height: int = SIDE
    width: int = SIDE
    top: int = 0
    left: int = 0

    def draw(self, scene: Scene) -> Image.Image:
        """The picture."""
        picture = draw(scene, (self.width, self.height))
        if min(picture.size) < SIDE:
            picture = picture.resize((SIDE, SIDE), Image.BICUBIC)
        return picture.crop((self.left, self.top, self.left + SIDE, self.top + SIDE))

    @property
    def sizes(self) -> tuple[int, ...]:
        """SDXL's six numbers: original height and width, crop's top and left, target height and width, in pixels."""
        return (self.height, self.width, self.top, self.left, SIDE, SIDE)


def random_view(rng: np.random.Generator) -> View:
    """Half of them small originals, half crops of larger ones, in steps of the latents' grid."""
    if rng.random() < 0.5:
        side = int(rng.choice([24, 32, 40]))
        return View(side, side)
    height, width = (SIDE + 16 * int(k) for k in rng.integers(0, 2, 2))
    top, left = (8 * int(rng.integers(0, (edge - SIDE) // 8 + 1)) for edge in (height, width))
    return View(height, width, top, left)


@dataclass(frozen=True)
class Data:
    """Scenes with their scaled latents (n, 4, 8, 8) and size numbers (n, 6)."""

    scenes: list[Scene]
    latents: torch.Tensor
    sizes: torch.Tensor


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Latents of pictures, (n, 4, 8, 8), at unit variance."""
    out = []
    for start in range(0, len(pictures), 32):
        pixels = np.stack([np.asarray(picture) for picture in pictures[start : start + 32]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        out.append(vae.encode(batch).latent_dist.mode() * SCALING_FACTOR)
    return torch.cat(out)


def make_data(vae: AutoencoderKL, sizes: bool, count: int = 12000, seed: int = 2) -> Data:
    """count scenes of the training combos; with sizes, some of them in other views."""
    rng = np.random.default_rng(seed)
    choices = [combo for combo in combos() if not is_held_out(combo)]
    pairs = []
    for _ in range(count):
        scene = random_scene(rng, choices, play=0.0)
        pairs.append((scene, random_view(rng) if sizes and rng.random() < VIEWS else View()))
    once = list(dict.fromkeys(pairs))
    latents = dict(zip(once, encode(vae, [view.draw(scene) for scene, view in once])))
    numbers = torch.tensor([view.sizes for _, view in pairs], dtype=torch.float32)
    return Data([scene for scene, _ in pairs], torch.stack([latents[pair] for pair in pairs]), numbers)


class TextStack(torch.nn.Module):
    """All text encoders of a family, and what its UNet reads of them."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        super().__init__()
        self.encoders = tuple(encoders)
        kinds = [CLIPTextModelWithProjection if one.open_clip else CLIPTextModel for one in encoders]
        self.models = torch.nn.ModuleList(
            [kind(CLIPTextConfig(**one.config)) for kind, one in zip(kinds, self.encoders)]
        )

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (n, 77) padded with the end mark -> context (n, 77, all widths) and the last encoder's pooled (n, P)."""
        ended = torch.cumsum(ids == END_ID, 1) > 1  # behind the first end mark
        states = []
        for encoder, model in zip(self.encoders, self.models):
            out = model(ids.masked_fill(ended, encoder.pad), output_hidden_states=True)
            state = out.hidden_states[-2]
            states.append(model.text_model.final_layer_norm(state) if encoder.final_norm else state)
        return torch.cat(states, 2), out.text_embeds


@dataclass(frozen=True)
class Models:
    """The networks that train together."""

    unet: UNet2DConditionModel
    text: TextStack

    def state(self) -> dict[str, State]:
        """Weights of both, by name."""
        return {"unet": self.unet.state_dict(), "text": self.text.state_dict()}

    def load(self, state: dict[str, State]) -> None:
        """Take over what `state` gave."""
        self.unet.load_state_dict(state["unet"])
        fill(self.text, state["text"])


@torch.no_grad()
def take_text(text: TextStack, trained: CLIPTextModel) -> None:
    """The SD1 miniature's encoder in every one of its width; the layer that it lacks stays as it is."""
    state = trained.state_dict()
    for model in text.models:
        if model.config.hidden_size == trained.config.hidden_size:
            model.load_state_dict(state, strict=False)


def _old_name(name: str, sdxl: bool) -> str:
    """Its name in the SD1 miniature: SDXL lacks the level of 1x1, so its ups begin one later."""
    head, *tail = name.split(".")
    if sdxl and head == "up_blocks":
        return ".".join([head, str(int(tail[0]) + 1), *tail[1:]])
    return name


@torch.no_grad()
def take_unet(unet: UNet2DConditionModel, old: State, norm: tuple[torch.Tensor, torch.Tensor, float] | None) -> int:
    """Start from the SD1 miniature's UNet; returns how many tensors came from it.

    norm: weight, bias and mean deviation of the final layer norm that SD1's context has and SDXL's has not. It is
    folded into the keys' and values' weights: a constant in the keys changes nothing, one in the values is a bias.
    What SD1 lacks starts without effect.
    """
    state, taken = unet.state_dict(), 0
    for name, value in state.items():
        other = old.get(_old_name(name, norm is not None))
        if (
            other is not None
            and "attn2.to_" in name
            and norm is not None
            and name.endswith((".to_k.weight", ".to_v.weight"))
        ):
            weight, _, deviation = norm
            width = len(weight)
            folded = other * weight / deviation
            value[:, :width] = folded - folded.mean(1, keepdim=True)
            value[:, width:] *= 0.5
        elif other is not None and other.numel() == value.numel():
            value.copy_(other.view_as(value))
        else:
            if ".transformer_blocks.1." in name and name.endswith((".to_out.0.weight", ".ff.net.2.weight")):
                value.zero_()
            continue
        if norm is not None and name.endswith("attn2.to_out.0.bias"):
            values = old[_old_name(name, True).replace("to_out.0.bias", "to_v.weight")]
            value += old[_old_name(name, True).replace(".bias", ".weight")] @ (values @ norm[1])
        taken += 1
    unet.load_state_dict(state)
    return taken


@torch.no_grad()
def make_models(recipe: Recipe, seed: int = 7) -> tuple[Models, AutoencoderKL]:
    """The family's networks as they begin, and the SD1 miniature's VAE."""
    torch.manual_seed(seed)
    pipeline = build_pipeline()
    models = Models(UNet2DConditionModel(**recipe.unet), TextStack(recipe.encoders))
    trained = pipeline.text_encoder
    take_text(models.text, trained)
    norm = None
    if not recipe.encoders[0].final_norm:
        last = trained.text_model.final_layer_norm
        state = trained(batch_of(["red circle, white background", "star, blue"]), output_hidden_states=True)
        norm = (last.weight, last.bias, float(state.hidden_states[-1].std(2).mean()))
    taken = take_unet(models.unet, pipeline.unet.state_dict(), norm)
    print(f"{taken} of {len(models.unet.state_dict())} tensors from the SD1 miniature", flush=True)
    return models, pipeline.vae


def share_context(models: Models, rng: np.random.Generator, steps: int = 1500) -> None:
    """The second encoder learns to say what the first says, in its fewer numbers, and the UNet listens to both alike.

    Else the UNet, which comes with a trained first encoder, never listens to the second at all. With P the main
    directions of the first's context c, W c = W/2 c + (W P^T)/2 P c, and P c is what the second learns.
    """
    first, second = (model.config.hidden_size for model in models.text.models)

    def context() -> torch.Tensor:
        captions = [caption(random_scene(rng, combos(), play=0.0), rng) for _ in range(CAPTIONS)]
        found: torch.Tensor = models.text(with_junk(batch_of(captions), rng))[0]
        return found

    with torch.no_grad():
        seen = torch.cat([context()[..., :first].flatten(0, 1) for _ in range(16)])
        main = torch.linalg.svd(seen, full_matrices=False).Vh[:second]
    trainee = Trainee(models, steps, 3e-3, [models.text.models[1]])
    for step in range(1, steps + 1):
        both = context()
        error = (both[..., first:] - both[..., :first].detach() @ main.T).square().mean()
        error.backward()
        trainee.step()
        if step % 250 == 0:
            share = error.item() / (both[..., :first].detach() @ main.T).square().mean().item()
            print(f"second encoder {step} error {share:.4f} of the square", flush=True)
    trainee.swap()
    models.text.zero_grad()
    with torch.no_grad():
        for name, weight in models.unet.named_parameters():
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                weight[:, :first] *= 0.5
                weight[:, first:] = weight[:, :first] @ main.T


def schedule(recipe: Recipe) -> torch.Tensor:
    """alphas_cumprod, float32 (1000,); rescaled so that the last is 0 where the recipe says so (Lin et al., 2024)."""
    acp = alphas_cumprod()
    if recipe.zero_terminal:
        root = acp.double().sqrt()
        acp = (((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2).float()
    return acp


def errors_of(
    models: Models, recipe: Recipe, data: Data, index: NDArray[np.int64], rng: np.random.Generator, acp: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted squared error of the prediction over the scenes of index, and of its means over each channel."""
    captions = [caption(data.scenes[i], rng) if rng.random() >= EMPTY_CAPTIONS else "" for i in index]
    context, pooled = models.text(with_junk(batch_of(captions), rng))
    if recipe.zeroed_captions:
        context, pooled = _thinned(context, pooled, captions, recipe.encoders[0].config["hidden_size"], rng)
    rows = torch.from_numpy(index)
    clean = data.latents[rows].repeat(REPEATS, 1, 1, 1)
    added = None
    if recipe.sizes:
        added = {"text_embeds": pooled.repeat(REPEATS, 1), "time_ids": data.sizes[rows].repeat(REPEATS, 1)}
    noise = torch.randn_like(clean)
    # One timestep per stratum of the batch: the same uniform law with less variance.
    n = len(clean)
    times = ((torch.randperm(n) + torch.rand(n)) * (1000 / n)).long().clamp(max=999)
    level = acp[times][:, None, None, None]
    noisy = level.sqrt() * clean + (1.0 - level).sqrt() * noise
    predicted = models.unet(noisy, times, context.repeat(REPEATS, 1, 1), added_cond_kwargs=added).sample
    if recipe.prediction == "v_prediction":
        error, weight = predicted - (level.sqrt() * noise - (1.0 - level).sqrt() * clean), torch.ones_like(level)
    else:
        # As in train_diffusion: .1 to 4, 1 near t = 400.
        error, weight = predicted - noise, ((1.0 - level) / level).sqrt().clamp(0.1, 4.0)
    return (weight * error.square()).mean(), (weight[..., 0, 0] * error.mean((2, 3)).square()).mean()


def _thinned(
    context: torch.Tensor, pooled: torch.Tensor, captions: Sequence[str], first: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeros for emptied captions; of some others the first encoder's part or the whole context is zeroed.

    So the second encoder and the pooled vector have to carry the prompt, too, and are not left to one side.
    """
    dice = rng.random(len(captions))
    told = torch.tensor([float(bool(text)) for text in captions])
    by_context = told * torch.from_numpy(dice >= POOLED_ALONE).float()
    by_first = by_context * torch.from_numpy(dice >= POOLED_ALONE + SECOND_ALONE).float()
    parts = [context[..., :first] * by_first[:, None, None], context[..., first:] * by_context[:, None, None]]
    return torch.cat(parts, 2), pooled * told[:, None]


class Rows:
    """Trains the rows of known words in a frozen table: an optimizer over 49,408 rows costs more than all the rest."""

    def __init__(self, text: TextStack) -> None:
        self.tables = [model.text_model.embeddings.token_embedding.weight for model in text.models]
        self.known = torch.tensor([0, *known_ids()])
        self.parts = [torch.nn.Parameter(table.detach()[self.known].clone()) for table in self.tables]

    def gather(self) -> None:
        """The tables' gradients become the rows'."""
        for table, part in zip(self.tables, self.parts):
            part.grad = table.grad[self.known].clone() if table.grad is not None else None
            table.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """The rows' values go into the tables."""
        for table, part in zip(self.tables, self.parts):
            table[self.known] = part


class Trainee:
    """Some of the networks with their optimizer, learning-rate curve and averages."""

    def __init__(self, models: Models, steps: int, rate: float, trained: Sequence[torch.nn.Module] = ()) -> None:
        self.models, self.rows = models, Rows(models.text)
        tables = {id(table) for table in self.rows.tables}
        modules = trained or (models.unet, models.text)
        named = [(name, p) for one in modules for name, p in one.named_parameters() if id(p) not in tables]
        # 1,536 of its inputs hardly change, and a step of all their weights at once would silence it for good.
        slow = [p for name, p in named if name.startswith(VECTOR)]
        named = [(name, p) for name, p in named if not name.startswith(VECTOR)]
        # Weight decay for matrices alone; embeddings would only shrink.
        decayed = [p for name, p in named if p.ndim > 1 and "embedding" not in name]
        plain = [p for name, p in named if p.ndim <= 1 or "embedding" in name] + self.rows.parts
        groups = [
            {"params": decayed, "weight_decay": 0.01},
            {"params": plain, "weight_decay": 0.0},
            {"params": slow, "weight_decay": 0.0, "lr": 0.02 * rate},
        ]
        self.learner = Learner(groups, rate, steps, betas=(0.9, 0.99))

    def step(self) -> None:
        """One step along the gradients that are there."""
        self.rows.gather()
        self.learner.step()
        self.rows.scatter()

    def swap(self) -> None:
        """Exchange the weights and their averages."""
        self.learner.ema.swap()
        self.rows.scatter()

    def save(self, path: Path) -> None:
        """The averaged weights."""
        self.swap()
        save(path, self.models.state())
        self.swap()


def train(
    recipe: Recipe, work: Path, steps: int, start: Path | None = None, rate: float = 1.5e-3, seed: int = 2
) -> None:
    """Train; write work/<name>.pt (averaged weights) and a snapshot of that kind every 250 steps.

    start: such a file to go on from, at a fresh learning-rate curve.
    """
    models, vae = make_models(recipe)
    cached = work / f"latents-{'sized' if recipe.sizes else 'plain'}.pt"
    if not cached.is_file():
        made = make_data(vae, recipe.sizes)
        save(cached, (made.scenes, made.latents, made.sizes))
    data = Data(*torch.load(cached, weights_only=False))
    print(f"latents mean {data.latents.mean().item():.3f} std {data.latents.std().item():.3f}", flush=True)
    if start is not None:
        models.load(torch.load(start))
    elif len(recipe.encoders) > 1:
        share_context(models, np.random.default_rng(seed))
    models.unet.to(memory_format=torch.channels_last)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    trainee = Trainee(models, steps, rate)
    acp, started, running, drift = schedule(recipe), time.time(), 0.0, 0.0
    for step in range(1, steps + 1):
        error, mean_error = errors_of(models, recipe, data, rng.integers(0, len(data.scenes), CAPTIONS), rng, acp)
        (error + MEAN_WEIGHT * mean_error).backward()
        trainee.step()
        running += (error.item() - running) / min(step, 100)
        drift += (mean_error.item() - drift) / min(step, 100)
        if step % 50 == 0:
            print(f"{recipe.name} {step} mse {running:.4f} mean {drift:.5f} {time.time() - started:.0f}s", flush=True)
        if step % 250 == 0 and step < steps:
            trainee.save(work / f"{recipe.name}-snapshot.pt")
    trainee.save(work / f"{recipe.name}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=RECIPES)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    train(RECIPES[options.family], options.work, options.steps, options.start, options.rate)
