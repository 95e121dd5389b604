"""Masks: which file is whose, cut and turned with the picture, brought to a latent's size by area, and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib_trainer.dataset.batches import FixedSize
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.encoded import Encoded
from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.folder import list_folder
from lib_trainer.dataset.latent_store import DiskStore, MemoryStore
from lib_trainer.dataset.library import open_library
from lib_trainer.dataset.masks import Masks, fitted_mask
from lib_trainer.dataset.report import _of_names
from lib_trainer.dataset.scan import Scan, scan_folder
from lib_trainer.dataset.variations import PLAIN, Variation, Variations
from lib_trainer.refusals import DatasetError


def picture(path: Path, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, "red").save(path)
    return path


def mask_file(path: Path, size: tuple[int, int] = (64, 64), white: tuple[int, int, int, int] = (0, 0, 32, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, 0)
    image.paste(255, white)
    image.save(path)
    return path


def scan(folder: Path, masks: Masks = Masks("file")) -> Scan:  # noqa: B008 - frozen
    return scan_folder(folder, trigger_word="t", repeats=1, masks=masks)


def masked(found: Scan) -> dict[str, str]:
    return {one.path.name: one.mask.path.name for one in found.samples if one.mask is not None}


def test_a_mask_is_of_the_picture_whose_name_it_has(tmp_path: Path) -> None:
    for name in ("a.png", "b (1).JPG", "c.webp", "d.png", "10_girl/é.png", "e.mask.e.png", "f.jpg", "f.png"):
        picture(tmp_path / name)
    for name in ("a-masklabel.png", "b (1)-MaskLabel.PNG", "c.webp.mask.png", "10_girl/e\u0301.mask.png"):
        mask_file(tmp_path / name)
    mask_file(tmp_path / "f.mask.webp")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d-masklabel.png").symlink_to(mask_file(tmp_path / "elsewhere" / "x.png"))
    mask_file(tmp_path / "z-masklabel.png")
    found = scan(tmp_path)
    assert masked(found) == {
        "a.png": "a-masklabel.png", "b (1).JPG": "b (1)-MaskLabel.PNG", "c.webp": "c.webp.mask.png",
        "d.png": "d-masklabel.png", "é.png": "e\u0301.mask.png", "f.jpg": "f.mask.webp", "f.png": "f.mask.webp",
    }  # fmt: skip
    assert [one.path.name for one in found.samples if one.mask is None] == ["e.mask.e.png"]
    assert found.lone_masks == ("z-masklabel.png",)
    said = [str(note) for note in found.notes]
    assert "1 file is named as a mask and belongs to no picture: z-masklabel.png." in said
    assert "7 of 8 pictures have a mask." in said
    assert "1 picture has no mask and is learned whole: e.mask.e.png." in said


def test_masks_are_no_pictures_also_where_nobody_wants_them(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    mask_file(tmp_path / "a-masklabel.png")
    assert list_folder(tmp_path).pictures == ("a.png",)
    found = scan(tmp_path, Masks())
    assert [one.path.name for one in found.samples] == ["a.png"]
    assert found.samples[0].mask is None and found.notes == ()


def test_a_folder_of_masks_has_pictures_names_and_may_have_subfolders(tmp_path: Path) -> None:
    pictures, masks = tmp_path / "set", tmp_path / "masks"
    for name in ("a.jpg", "b.png", "3_dog/c.png", "3_dog/d.png"):
        picture(pictures / name)
    for name in ("a.png", "3_dog/c.png", "d-masklabel.png", "x.png"):
        mask_file(masks / name)
    found = scan(pictures, Masks("file", masks))
    assert masked(found) == {"a.jpg": "a.png", "c.png": "c.png", "d.png": "d-masklabel.png"}
    assert found.lone_masks == (str(masks / "x.png"),)
    assert f"1 mask matches no picture: {masks / 'x.png'}." in [str(note) for note in found.notes]
    assert masked(scan(pictures, Masks("file", pictures))) == {}, "a picture is not its own mask"


def test_transparency_is_a_mask_where_there_is_some(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 16))
    image.save(tmp_path / "b.png")
    found = scan(tmp_path, Masks("alpha"))
    assert masked(found) == {"b.png": "b.png"}
    mask = found.samples[1].mask
    assert mask is not None
    assert torch.equal(mask.read().mean(1), torch.tensor([0.0] * 16 + [1.0] * 48))


def test_a_mask_of_another_shape_is_refused_by_both_names(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (64, 48))
    mask_file(tmp_path / "a.mask.png", (64, 64))
    with pytest.raises(DatasetError, match=r"a\.mask\.png has 64 × 64 pixels and its picture .*a\.png 64 × 48"):
        scan(tmp_path)
    mask_file(tmp_path / "a.mask.png", (33, 25))  # half of it, rounded
    assert masked(scan(tmp_path)) == {"a.png": "a.mask.png"}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.0, 1.0), (0.25, 0.75)])
@pytest.mark.parametrize(("original", "own"), [((30, 20), (30, 20)), ((20, 30), (20, 30)), ((30, 20), (15, 10))])
def test_a_latents_mask_is_the_share_of_area_in_double_precision(
    at: tuple[float, float], original: tuple[int, int], own: tuple[int, int], mirrored: bool
) -> None:
    """Beside a mean over a grid so fine that all borders lie on it, of the picture as it is scaled and cropped."""
    values = np.random.default_rng(0).random((own[1], own[0]))
    target, cells, variation = (16, 16), (2, 2), Variation(at=at, mirrored=mirrored)
    ours = fitted_mask(torch.from_numpy(values), original, target, cells, variation)
    fine = 20  # points of the scaled picture for each of its pixels
    scale = max(target[0] / original[0], target[1] / original[1])
    wide, high = round(original[0] * scale), round(original[1] * scale)
    left, top = (int((wide - 16) * at[0] + 1e-6), int((high - 16) * at[1] + 1e-6))
    columns = ((left + (np.arange(16 * fine) + 0.5) / fine) / scale * own[0] / original[0]).astype(int)
    rows = ((top + (np.arange(16 * fine) + 0.5) / fine) / scale * own[1] / original[1]).astype(int)
    seen = values[rows][:, columns]
    wanted = seen.reshape(2, 8 * fine, 2, 8 * fine).mean((1, 3))
    assert np.allclose(ours[0].numpy(), wanted[:, ::-1] if mirrored else wanted, atol=1e-6)


def encode(found: Scan, store: MemoryStore | DiskStore, calls: list[int], variations: Variations) -> Encoded:
    def vae(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.zeros(1, 8, pixels.shape[2] // 8, pixels.shape[3] // 8)

    nothing = lambda done, total: None  # noqa: E731
    return encode_pictures(found.samples, FixedSize(64, 64), vae, "vae", store, nothing, lambda: False, variations)


def test_masks_are_kept_with_latents_and_those_of_unmasked_sets_stay(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png", (64, 64))
    store, calls = DiskStore(tmp_path / "cache"), list[int]()
    plain = encode(scan(tmp_path / "set"), store, calls, Variations())
    assert plain.mask(0) is None
    mask_file(tmp_path / "set" / "a.mask.png", white=(0, 0, 24, 64))
    with_mask = encode(scan(tmp_path / "set"), store, calls, Variations(mirror=True))
    assert len(calls) == 2, "the upright picture was there already"
    assert with_mask.keys[0][0] == plain.keys[0][0]
    upright, mirrored = with_mask.mask(0, 0), with_mask.mask(0, 1)
    assert upright is not None and mirrored is not None
    assert torch.equal(upright[0, 0], torch.tensor([1.0] * 3 + [0.0] * 5))
    assert torch.equal(mirrored, upright.flip(2))
    mask_file(tmp_path / "set" / "a.mask.png", white=(0, 0, 0, 0))
    blank = encode(scan(tmp_path / "set"), store, calls, Variations())
    changed = blank.mask(0)
    assert changed is not None and not changed.any()
    assert [path.name for path in blank.blank] == ["a.mask.png"] and with_mask.blank == ()
    assert len(calls) == 2


def test_a_mask_that_cannot_be_read_leaves_its_picture_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    path = mask_file(tmp_path / "a.mask.png")
    found = scan(tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    encoded = encode(found, MemoryStore(), [], Variations())
    assert [one.path.name for one in encoded.samples] == ["b.png"]
    assert [one.path.name for one in encoded.skipped] == ["a.png"]


def test_the_dataset_tab_counts_masks_and_moves_them_with_their_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        picture(tmp_path / name)
    for name in ("a.mask.png", "z.mask.png"):
        mask_file(tmp_path / name)
    found = {one.kind: one for one in _of_names(open_library(tmp_path)) if one is not None}
    assert found["lone-mask"].paths == ("z.mask.png",)
    assert found["masked"].pictures == ("a.jpg", "a.png")
    assert found["no-mask"].pictures == ("b.png",)
    editor = Editor(tmp_path)
    assert editor.preview_trash(["a.png"]).moved == ["a.png"]
    editor.to_trash(["a.png", "a.jpg"], ["z.mask.png"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["b.png"]
    editor.undo()
    assert list_folder(tmp_path).mask("a.png") == "a.mask.png"


def test_a_plain_variation_is_the_default() -> None:
    values = torch.rand(8, 8)
    assert torch.allclose(fitted_mask(values, (8, 8), (8, 8), (8, 8), PLAIN)[0], values)
    assert replace(PLAIN, mirrored=True) != PLAIN
