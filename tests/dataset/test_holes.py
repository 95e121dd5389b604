"""Holes for models that inpaint: drawn or masks, kept with latents, and what is left of a picture beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_trainer.dataset.batches import FixedSize
from lib_trainer.dataset.encoded import Encoded
from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.holes import Holes, random_hole
from lib_trainer.dataset.latent_store import DiskStore, MemoryStore
from lib_trainer.dataset.masks import Masks
from lib_trainer.dataset.scan import scan_folder
from lib_trainer.dataset.variations import Variations
from tests.support import draw_pictures


def test_random_holes_are_the_whole_picture_a_quarter_of_the_time() -> None:
    holes = [random_hole(f"seed {number}", 96, 64) for number in range(400)]
    assert all(hole.shape == (1, 64, 96) and set(hole.unique().tolist()) <= {0.0, 1.0} for hole in holes)
    whole = [bool(hole.all()) for hole in holes]
    assert 70 < sum(whole) < 130
    parts = [float(hole.mean()) for hole, one in zip(holes, whole, strict=True) if not one]
    assert min(parts) > 0.01 and max(parts) > 0.6 and len(set(parts)) > 200
    assert torch.equal(random_hole("seed 1", 96, 64), holes[1])


class Vae:
    """The mean of each cell's red channel, told in all of the moments' channels."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.nn.functional.avg_pool2d(pixels[:, :1], 8).expand(1, 8, -1, -1).clone()


def encode(folder: Path, store: Any, vae: Vae, holes: Holes | None, masks: Masks, mirror: bool = False) -> Encoded:
    samples = scan_folder(folder, trigger_word="t", repeats=1, masks=masks).samples
    nothing = lambda done, total: None  # noqa: E731
    variations = Variations(mirror=mirror)
    return encode_pictures(samples, FixedSize(64, 64), vae, "vae", store, nothing, lambda: False, variations, holes)


def test_pictures_are_encoded_with_each_of_their_holes_and_once_without(tmp_path: Path) -> None:
    folder, store, vae = draw_pictures(tmp_path / "set", 2), DiskStore(tmp_path / "cache"), Vae()
    plain = encode(folder, store, vae, None, Masks())
    assert vae.calls == 2 and plain.hole(0) is None
    holes = encode(folder, store, vae, Holes(3), Masks(), mirror=True)
    assert vae.calls == 2 + 2 + 2 * 2 * 3, "two mirrored pictures, and three holes of four"
    assert len(holes.keys[0]) == len(holes.holes[0]) == len(holes.sizes[0]) == 6
    assert len(set(holes.keys[0])) == 2 and holes.keys[0][0] == plain.keys[0][0]
    assert len({one for own in holes.holes for pair in own for one in pair}) == 24
    again = encode(folder, store, vae, Holes(3), Masks(), mirror=True)
    assert vae.calls == 16 and again.holes == holes.holes


def test_what_is_left_beside_a_mask_is_grey_inside(tmp_path: Path) -> None:
    folder, store = draw_pictures(tmp_path / "set", 2), MemoryStore()
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 20, 64))  # two cells and a half: what is half covered begins outside
    mask.save(folder / "0.mask.png")
    encoded = encode(folder, store, Vae(), Holes(2, masks=True), Masks("file"))
    assert [len(own) for own in encoded.holes] == [1, 2], "a mask is one hole"
    found = encoded.hole(0, 0)
    assert found is not None
    hole, rest = found
    assert torch.equal(hole[0, 0], torch.tensor([1.0, 1.0, 1.0, 0, 0, 0, 0, 0]))
    whole = encoded.moments(0, 0)
    assert torch.equal(rest[:, :, 3:], whole[:, :, 3:]) and not rest[:, :, :2].any()
    with Image.open(folder / "0.png") as image:
        pixels = torch.from_numpy(np.array(image)[:, :, 0]).float() / 127.5 - 1
    pixels[:, :20] = 0
    assert torch.allclose(rest[0], torch.nn.functional.avg_pool2d(pixels[None, None], 8)[0, 0], atol=1e-6)
