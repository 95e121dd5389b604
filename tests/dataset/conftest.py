"""Photographs that ship with scikit-image, and a maker of picture files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

MakePicture = Callable[..., Path]


@pytest.fixture(scope="session")
def photographs() -> Path:
    skimage = pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    return Path(skimage.__file__).parent / "data"


@pytest.fixture
def make_picture(tmp_path: Path) -> MakePicture:
    """make_picture('sub/a.png', size=(w, h), colour=…, caption=…) → its path."""

    def make(
        name: str,
        size: tuple[int, int] = (24, 16),
        colour: tuple[int, int, int] = (200, 40, 90),
        caption: str | bytes | None = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption.encode() if isinstance(caption, str) else caption)
        return path

    return make
