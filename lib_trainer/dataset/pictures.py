"""Reading a picture the way its owner sees it, and fitting it to the size it is trained at.

Pillow's own guard against picture bombs is a global that warns or raises at sizes that phones reach today, and neither
that global nor Python's warning filters can be changed safely while other threads of the host run. So files are opened
through Pillow's registry of formats, which has no guard, and held to `MAX_PIXELS` here.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageChops

from lib_trainer.dataset.bare_picture import bare_versions
from lib_trainer.dataset.variations import PLAIN, Variation
from lib_trainer.memory import is_out_of_memory
from lib_trainer.ports import PictureSize
from lib_trainer.refusals import DatasetError, Reason, Sentence

MAX_PIXELS = 200_000_000
"""Pictures with more pixels than this are refused before they are decoded (TIFF: Pillow's own limit, 89 megapixels)."""

MAX_BYTES = 512 << 20
"""Of a larger file nothing is read a second time."""

REDUCING_GAP = 3.0  # Pillow's own word for it: 'indistinguishable from fair resampling', and far faster on photographs

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(DatasetError):
    """One picture cannot be used. `reason` is what is wrong with it, without the file's name."""

    def __init__(self, path: Path, reason: Sentence) -> None:
        super().__init__("picture.unusable", path=path, reason=reason)
        self.path = path
        self.reason = reason


def read_size(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation, from the header alone; nothing is decoded.

    `data`: the file's bytes where the caller has them already. Raises `PictureError`.
    """
    return _read(path, data, lambda file: _upright_size(_open(file)))


@dataclass(frozen=True)
class Header:
    """What a file says of its picture. `size`: (width, height), upright; `turned`: EXIF turns it; `animated`: there are
    more pictures in it than the first one, which is used."""

    size: tuple[int, int]
    turned: bool
    transparent: bool
    animated: bool = False


def read_header(path: Path, data: bytes | None = None) -> Header:
    """As `read_size`, with what an owner may not know of the file. Raises `PictureError`."""

    def read(file: BinaryIO) -> Header:
        image = _open(file)
        size, turned, transparent = _upright_size(image), _orientation(image) > 1, _may_be_transparent(image)
        return Header(size, turned, transparent, _is_animated(image))

    return _read(path, data, read)


def load_picture(path: Path, data: bytes | None = None) -> Image.Image:
    """The picture as RGB, 8 bits a channel, upright, in sRGB; of an animation the first frame.

    Transparency shows white. Greyscale of more than 8 bits is scaled from 16 bits, from [0, 1], or from its own range
    where it fits neither. `data`: the file's bytes where the caller has them already. What hangs around the pixels and
    cannot be read (text, EXIF, a colour profile) is left out. Raises `PictureError` for pixels that cannot be read,
    truncated files included.
    """
    return _read(path, data, _load)


def load_alpha(path: Path, data: bytes | None = None) -> Image.Image:
    """A picture's opacity, 8 bits, upright; white where it has none. `data` and errors are `load_picture`'s."""
    return _read(path, data, lambda file: _opacity(_upright(file)))


def load_brightness(path: Path, data: bytes | None = None) -> Image.Image:
    """A picture in grey, 8 bits, upright, its numbers as they are in the file; transparency shows black, as of a mask
    nothing is meant there. `data` and errors are `load_picture`'s."""

    def read(file: BinaryIO) -> Image.Image:
        image = _upright(file)
        grey = _from_deep_grey(image) if _is_deep_grey(image) else image.convert("RGBA").convert("RGB")
        return ImageChops.multiply(grey.convert("L"), _opacity(image))

    return _read(path, data, read)


def _load(file: BinaryIO) -> Image.Image:
    return _to_srgb(_upright(file))


def _upright(file: BinaryIO) -> Any:
    image = _open(file)
    # Pillow turns a TIFF while it decodes it, and not every version then drops the tag
    orientation = 1 if image.format == "TIFF" else _orientation(image)
    image.load()
    upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    upright.info, upright.format = image.info, image.format
    return upright


def _opacity(image: Any) -> Image.Image:
    if not _may_be_transparent(image):
        return Image.new("L", image.size, 255)
    layer = image.convert("LA") if image.mode == "La" else image
    alpha: Image.Image = (layer if layer.mode == "RGBA" else layer.convert("RGBA")).getchannel("A")
    return alpha


def placement(
    size: tuple[int, int], width: int, height: int, variation: Variation = PLAIN
) -> tuple[float, PictureSize]:
    """How a picture of `size` (width, height) covers a target: the scale, and what SDXL is told.

    The picture is scaled until it covers the target and is cropped at the centre or where the variation says; a
    mirrored one's crop is counted from the edge that was the right one. All of `PictureSize` is rows first:
    `original` (height, width) before scaling, `crop` (top, left) counted in the scaled picture, `target` (height,
    width); pixels.
    """
    scale = max(width / size[0], height / size[1])
    left = max(0, math.floor((size[0] * scale - width) * variation.at[0] + 1e-6))
    top = max(0, math.floor((size[1] * scale - height) * variation.at[1] + 1e-6))
    if variation.mirrored:
        left = max(0, round(size[0] * scale) - width - left)
    return scale, PictureSize(original=(size[1], size[0]), crop=(top, left), target=(height, width))


def crop_box(
    original: tuple[int, int], width: int, height: int, variation: Variation = PLAIN
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what is kept of a picture, in its own pixels; it is mirrored afterwards."""
    scale, size = placement(original, width, height, replace(variation, mirrored=False))
    top, left = size.crop
    # at scale 1 the box lies on whole pixels, and resampling changes nothing
    right, bottom = min(original[0], (left + width) / scale), min(original[1], (top + height) / scale)
    return left / scale, top / scale, right, bottom


def fit(image: Image.Image, width: int, height: int, variation: Variation = PLAIN) -> tuple[Image.Image, PictureSize]:
    """The picture at exactly `width` × `height` pixels (Lanczos), and its `placement`.

    Only what is kept is computed, so that a picture of 1 × 2000 pixels does not pass through a giant.
    """
    size = placement(image.size, width, height, replace(variation, mirrored=False))[1]
    box = crop_box(image.size, width, height, variation)
    fitted = image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)
    fitted = variation.coloured(fitted)
    if variation.mirrored:
        fitted = fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        size = placement(image.size, width, height, variation)[1]
    return fitted, size


def to_pixels(image: Image.Image) -> torch.Tensor:
    """RGB picture → (3, H, W) fp32 in [-1, 1]."""
    array = np.array(image, dtype=np.uint8)  # a copy: torch warns about memory that it may not write to
    return torch.from_numpy(array).permute(2, 0, 1).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


Answer = TypeVar("Answer")


def _read(path: Path, data: bytes | None, work: Callable[[BinaryIO], Answer]) -> Answer:
    """What `work` reads of a file, or of its pixels alone where the whole of it cannot be read."""
    try:
        with _source(path, data) as file:
            try:
                return work(file)
            except Exception as error:  # a plugin of Pillow may raise nearly anything on a damaged file
                told_by_system = isinstance(error, OSError) and error.errno is not None
                if told_by_system or isinstance(error, Reason) or is_out_of_memory(error):
                    raise
                return _read_bare(file, work, error)
    except Exception as error:
        if is_out_of_memory(error):  # the picture is sound, and must not be left out of the set
            raise
        raise PictureError(path, _reason(path, error)) from error


def _read_bare(file: BinaryIO, work: Callable[[BinaryIO], Answer], error: Exception) -> Answer:
    """Raises `error`, which is why the file cannot be read, where it cannot be read so either."""
    file.seek(0)
    for version in bare_versions(file.read(MAX_BYTES)):
        try:
            return work(io.BytesIO(version))
        except Exception as again:
            if is_out_of_memory(again):
                raise
    raise error


def _source(path: Path, data: bytes | None) -> contextlib.AbstractContextManager[BinaryIO]:
    return path.open("rb") if data is None else contextlib.nullcontext(io.BytesIO(data))


def _open(file: BinaryIO) -> Any:
    """The picture, not decoded yet. Every name of a file lies, so its first bytes decide."""
    start = file.read(16)
    if not start:
        raise Reason("picture.empty")
    Image.preinit()
    if any(name not in Image.OPEN for name in _FORMATS):
        Image.init()
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue
        factory, accepts = Image.OPEN[name]
        accepted = accepts is not None and accepts(start)
        if not accepted or isinstance(accepted, str):  # a string says that this build of Pillow lacks the decoder
            continue
        if name == "TIFF":
            _guard_tiff(file, start)
        file.seek(0)
        image = factory(file, "")
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Reason("picture.too_large", width=width, height=height, most=MAX_PIXELS // 1000000)
        if not width or not height:
            raise Reason("picture.no_pixels")
        return image
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        raise Reason("picture.no_avif")
    raise Reason("picture.no_format")


def _guard_tiff(file: BinaryIO, start: bytes) -> None:
    """Pillow's TIFF reader alone checks the size itself while it opens; it would warn before we could refuse."""
    from PIL import TiffImagePlugin

    if Image.MAX_IMAGE_PIXELS is None:
        return
    big = 43 in start[2:4]
    directory: Any = TiffImagePlugin.ImageFileDirectory_v2(start[: 16 if big else 8])
    file.seek(directory.next)
    directory.load(file)
    width, height = int(directory[256]), int(directory[257])
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise Reason("picture.large_tiff", width=width, height=height)


def _orientation(image: Any) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it is damaged."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return 1  # asking would make Pillow decode the whole file in search of a chunk behind the pixels
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        return 1
    return value if value in _TURNS else 1


def _is_animated(image: Any) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is damaged is none
        return False


def _upright_size(image: Any) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":
        width, height = int(image.tag_v2[256]), int(image.tag_v2[257])  # newer Pillows have swapped them in `size`
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _to_srgb(image: Any) -> Image.Image:
    profile = image.info.get("icc_profile")
    if _is_deep_grey(image):
        return _from_deep_grey(image)
    if image.mode == "CMYK":
        return _convert_profile(image, profile) or image.convert("RGB")
    coloured = image.mode not in ("1", "L", "LA", "La")
    flat = _on_white(image) if _may_be_transparent(image) else image if image.mode == "RGB" else image.convert("RGB")
    return (_convert_profile(flat, profile) if coloured else None) or flat


def _is_deep_grey(image: Any) -> bool:
    return image.mode in ("I", "F") or bool(image.mode.startswith("I;16"))


def _may_be_transparent(image: Any) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _on_white(image: Any) -> Image.Image:
    layer = image if image.mode == "RGBA" else (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGB", layer.size, (255, 255, 255))
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _from_deep_grey(image: Any) -> Image.Image:
    """Greyscale of 16 or 32 bits, or of floats, to 8 bits.

    White is 65535 in a 16-bit file. Elsewhere the file does not say: the nearest usual white above the brightest value
    (1 for floats, 255, 65535) is taken, and the picture's own range where there is none.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        black, white = 0.0, 65535.0
    else:
        usual = [w for w in ((1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)) if w >= high]
        black, white = (0.0, usual[0]) if usual and low >= 0 else (low, high)
    scaled = (values - black) * (255.0 / ((white - black) or 1.0))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")


def _convert_profile(image: Any, profile: bytes | None) -> Image.Image | None:
    """The picture in sRGB, or None where it has no profile or one that does not work."""
    if not profile:
        return None
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None  # most profiles say that the picture is in sRGB already
        target = ImageCms.createProfile("sRGB")
        converted: Image.Image | None = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        return converted
    except Exception:  # a broken profile, or a Pillow without littlecms: the colours are a little off, nothing more
        return None


def _reason(path: Path, error: Exception) -> Sentence:
    if isinstance(error, Reason):
        return error.sentence
    if isinstance(error, FileNotFoundError):
        return Sentence("picture.gone")
    if isinstance(error, PermissionError):
        return Sentence("picture.no_permission")
    if isinstance(error, struct.error | SyntaxError | IndexError | EOFError):
        return Sentence("picture.cut_short")
    told = " ".join(str(error).split()) or type(error).__name__
    return Sentence("picture.damaged", reason=told.replace(f"'{path}'", "it"))
