"""The preview of buckets shows the very crop that training makes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lib_trainer.dataset.batches import FixedSize
from lib_trainer.dataset.bucket_preview import preview_buckets
from lib_trainer.dataset.buckets import Buckets
from lib_trainer.dataset.pictures import fit


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (512, 512), (900, 100), (333, 257)])
@pytest.mark.parametrize("buckets", [False, True])
def test_what_is_kept_is_what_is_fitted(size: tuple[int, int], buckets: bool) -> None:
    """Of a picture whose red tells how far right a pixel is, and whose green how far down."""
    sizer = Buckets(((128, 128),), 32, 32, 256) if buckets else FixedSize(128, 64)
    (found,) = preview_buckets({"a": size}, sizer)
    (kept,) = found.pictures
    across = np.linspace(0, 255, size[0], dtype=np.float32)[None, :].repeat(size[1], 0)
    down = np.linspace(0, 255, size[1], dtype=np.float32)[:, None].repeat(size[0], 1)
    picture = Image.fromarray(np.stack([across, down, down], -1).round().astype(np.uint8))
    fitted = np.asarray(fit(picture, *found.size)[0], dtype=np.float32)
    middle = fitted[:, :, 0].mean() / 255, fitted[:, :, 1].mean() / 255
    assert middle == pytest.approx((kept.left + kept.width / 2, kept.top + kept.height / 2), abs=0.01)
    spread = fitted[:, :, 0].max() - fitted[:, :, 0].min(), fitted[:, :, 1].max() - fitted[:, :, 1].min()
    assert np.array(spread) / 255 == pytest.approx((kept.width, kept.height), abs=0.03)
    assert kept.share == pytest.approx(kept.width * kept.height)
    assert found.cut == pytest.approx(1 - kept.share)


def test_buckets_are_in_order_and_the_worst_pictures_first() -> None:
    sizer = Buckets(((128, 128), (64, 64)), 64, 64, 256)
    sizes = {"wide": (400, 100), "square": (90, 90), "nearly": (90, 80), "tall": (100, 400)}
    found = preview_buckets(sizes, sizer)
    assert [one.size[0] / one.size[1] for one in found] == sorted(one.size[0] / one.size[1] for one in found)
    assert sum(len(one.pictures) for one in found) == 8, "each at both resolutions"
    square = next(one for one in found if one.size == (128, 128))
    assert [one.key for one in square.pictures] == ["nearly", "square"] and square.enlarged == 2
