"""Pictures cover their target, are cropped at the centre, and SDXL is told the truth about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_trainer.dataset.pictures import fit, load_picture, placement, to_pixels


@pytest.mark.parametrize(
    ("size", "target", "crop"),
    [
        ((512, 512), (512, 512), (0, 0)),
        ((1024, 512), (512, 512), (0, 256)),
        ((512, 1024), (512, 512), (256, 0)),
        ((513, 512), (512, 512), (0, 0)),
        ((2000, 1000), (512, 512), (0, 256)),
        ((100, 50), (512, 768), (0, 512)),
        ((1, 2000), (64, 64), (63968, 0)),
    ],
)
def test_placement(size: tuple[int, int], target: tuple[int, int], crop: tuple[int, int]) -> None:
    scale, result = placement(size, *target)
    assert result.original == (size[1], size[0])
    assert result.target == (target[1], target[0])
    assert result.crop == crop
    assert size[0] * scale >= target[0] - 1e-6 and size[1] * scale >= target[1] - 1e-6


def test_fitting_to_its_own_size_changes_nothing(photographs: Path) -> None:
    picture = load_picture(photographs / "astronaut.png")
    fitted, _ = fit(picture, *picture.size)
    assert np.array_equal(np.asarray(fitted), np.asarray(picture))


def test_fitting_without_scaling_is_a_crop(photographs: Path) -> None:
    picture = load_picture(photographs / "chelsea.png")  # 451 × 300
    fitted, size = fit(picture, 300, 300)
    assert size.crop == (0, 75)
    assert np.array_equal(np.asarray(fitted), np.asarray(picture)[:, 75:375])


@pytest.mark.parametrize("name", ["rocket.jpg", "coffee.png", "chelsea.png"])
@pytest.mark.parametrize("target", [(128, 128), (64, 192), (512, 448)])
def test_fitting_agrees_with_resizing_then_cropping(photographs: Path, name: str, target: tuple[int, int]) -> None:
    picture = load_picture(photographs / name)
    fitted, size = fit(picture, *target)
    assert fitted.size == target
    scale = max(target[0] / picture.width, target[1] / picture.height)
    whole = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    top, left = size.crop
    expected = whole.crop((left, top, left + target[0], top + target[1]))
    assert np.abs(np.asarray(fitted).astype(int) - np.asarray(expected)).mean() < 4
    beside = whole.crop((left - 6, top - 6, left - 6 + target[0], top - 6 + target[1]))
    assert np.abs(np.asarray(fitted).astype(int) - np.asarray(beside)).mean() > 6


def test_a_thread_of_a_picture_is_fitted_quickly() -> None:
    picture = Image.new("RGB", (1, 2000), (3, 4, 5))
    picture.putpixel((0, 1000), (255, 255, 255))
    fitted, size = fit(picture, 512, 512)
    assert fitted.size == (512, 512)
    assert size.original == (2000, 1)
    assert np.asarray(fitted).max() > 200


def test_pixels() -> None:
    image = Image.new("RGB", (5, 3), (0, 255, 127))
    image.putpixel((4, 0), (255, 0, 0))
    pixels = to_pixels(image)
    assert pixels.shape == (3, 3, 5) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert pixels[:, 2, 0].tolist() == pytest.approx([-1, 1, 127 / 127.5 - 1])
    assert pixels[:, 0, 4].tolist() == [1, -1, -1]
