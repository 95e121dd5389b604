"""Pictures are encoded once, found again, made anew when anything changed, and drawn from correctly."""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.multiprocessing.reductions import StorageWeakRef

from lib_trainer.dataset import encoding, latent_store, variants
from lib_trainer.dataset.batches import FixedSize, Sizer
from lib_trainer.dataset.buckets import Buckets
from lib_trainer.dataset.encoded import Encoded
from lib_trainer.dataset.encoding import encode_pictures
from lib_trainer.dataset.latent_store import DiskStore, LatentStore, MemoryStore
from lib_trainer.dataset.pictures import fit, load_picture, to_pixels
from lib_trainer.dataset.scan import Sample, scan_folder
from lib_trainer.dataset.variants import latent_key
from lib_trainer.dataset.variations import ALONE, Variations
from lib_trainer.refusals import DatasetError, ModelError

MakePicture = Any
SIZE = FixedSize(64, 32)


class CountingVae:
    """Moments that show the pixels they were made from; remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[torch.Tensor] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls.append(pixels)
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, small, small[:, :2]], dim=1)


def key_of(path: Path, target: tuple[int, int] = (64, 32), fingerprint: str = "vae") -> str:
    return latent_key(hashlib.sha256(path.read_bytes()).hexdigest(), target, fingerprint)


def samples_in(folder: Path) -> tuple[Sample, ...]:
    return scan_folder(folder, trigger_word="t", repeats=1).samples


def encode(
    samples: tuple[Sample, ...],
    vae: Callable[[torch.Tensor], torch.Tensor],
    store: LatentStore | None = None,
    sizer: Sizer = SIZE,
    fingerprint: str = "vae",
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopping: Callable[[], bool] = lambda: False,
    variations: Variations = ALONE,
) -> Encoded:
    store = MemoryStore() if store is None else store
    return encode_pictures(samples, sizer, vae, fingerprint, store, progress, stopping, variations)


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LatentStore:
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "cache" / "deep")


@pytest.fixture
def folder(tmp_path: Path, make_picture: MakePicture) -> Path:
    for index in range(12):
        make_picture(f"set/{index}.png", size=(30 + index, 40), colour=(index * 20, 0, 255 - index * 20))
    return tmp_path / "set"


def test_every_picture_is_encoded_in_order(folder: Path, store: LatentStore) -> None:
    vae, seen = CountingVae(), list[tuple[int, int]]()
    samples = samples_in(folder)
    encoded = encode(samples, vae, store, progress=lambda done, total: seen.append((done, total)))
    assert encoded.samples == samples and len(encoded) == 12
    assert encoded.skipped == () and not encoded.stopped
    assert seen == [(done, 12) for done in range(13)]
    assert encoded.targets == ((64, 32),) * 12
    for index, sample in enumerate(samples):
        picture, size = fit(load_picture(sample.path), 64, 32)
        assert encoded.sizes[index] == (size,)
        expected = CountingVae()(to_pixels(picture)[None])[0]
        assert torch.equal(encoded.moments(index), expected)
        assert encoded.moments(index).shape == (8, 4, 8) and encoded.moments(index).dtype == torch.float32
    assert all(pixels.shape == (1, 3, 32, 64) and pixels.dtype == torch.float32 for pixels in vae.calls)


def test_photographs_survive_the_way_through_a_store(photographs: Path, tmp_path: Path) -> None:
    path = photographs / "rocket.jpg"
    sample = Sample(path, "rocket", 1, "", (640, 427))
    encoded = encode((sample,), CountingVae(), DiskStore(tmp_path), FixedSize(128, 128))
    picture, _ = fit(load_picture(path), 128, 128)
    assert torch.equal(encoded.moments(0)[:3], torch.nn.functional.avg_pool2d(to_pixels(picture), 8))
    assert encoded.sizes[0][0].original == (427, 640) and encoded.sizes[0][0].crop == (0, 31)


def test_the_second_run_encodes_nothing_and_knows_the_same(folder: Path, store: LatentStore) -> None:
    first, vae = encode(samples_in(folder), CountingVae(), store), CountingVae()
    second = encode(samples_in(folder), vae, store)
    assert vae.calls == []
    assert second == first
    assert all(torch.equal(first.moments(index), second.moments(index)) for index in range(12))


@pytest.mark.parametrize("change", ["fingerprint", "size", "picture", "turned"])
def test_a_change_is_a_miss(folder: Path, store: LatentStore, change: str) -> None:
    encode(samples_in(folder), CountingVae(), store)
    vae, options = CountingVae(), dict[str, Any]()
    if change == "fingerprint":
        options["fingerprint"] = "another"
    elif change == "size":
        options["sizer"] = FixedSize(32, 64)
    else:
        with Image.open(folder / "3.png") as image:
            edited = image.rotate(90, expand=True) if change == "turned" else image.point(lambda v: v ^ 1)
        edited.save(folder / "3.png")
    encoded = encode(samples_in(folder), vae, store, **options)
    assert len(vae.calls) == (12 if options else 1)
    if change == "turned":
        assert encoded.sizes[3][0].original == (33, 40)


def test_a_picture_is_encoded_at_each_of_its_sizes(folder: Path, store: LatentStore) -> None:
    sizer = Buckets(((64, 64), (128, 128)), 64, 64, 256)
    Image.new("RGB", (200, 50), "red").save(folder / "0.png")
    encoded = encode(samples_in(folder), CountingVae(), store, sizer)
    assert [one.path.name for one in encoded.samples[:4]] == ["0.png", "0.png", "1.png", "1.png"]
    assert encoded.targets[:4] == ((64, 64), (256, 64), (64, 64), (128, 128))
    assert [one.target for (one,) in encoded.sizes[:4]] == [(64, 64), (64, 256), (64, 64), (128, 128)]
    assert encoded.moments(1).shape == (8, 8, 32)
    vae = CountingVae()
    assert encode(samples_in(folder), vae, store, sizer).keys == encoded.keys
    assert vae.calls == []


def test_every_variation_is_encoded_and_found_again(folder: Path, store: LatentStore) -> None:
    variations = Variations(mirror=True, crop=True, colour=0.3, grey=0.5, count=3)
    encoded = encode(samples_in(folder), CountingVae(), store, variations=variations)
    assert len(variations) == 6 and {len(own) for own in (*encoded.keys, *encoded.sizes)} == {6}
    assert len({key for own in encoded.keys for key in own}) == 72
    digest = hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()
    for place, variation in enumerate(variations.of(digest)):
        picture, size = fit(load_picture(folder / "0.png"), 64, 32, variation)
        assert torch.equal(encoded.moments(0, place), CountingVae()(to_pixels(picture)[None])[0])
        assert encoded.sizes[0][place] == size
    vae = CountingVae()
    again = encode(samples_in(folder), vae, store, variations=variations)
    assert vae.calls == [] and (again.keys, again.sizes) == (encoded.keys, encoded.sizes)
    plain = encode(samples_in(folder), vae, store)
    assert len(vae.calls) == 12, "the picture as it is, is none of them"
    assert encode(samples_in(folder), vae, store, variations=Variations(mirror=True)).keys[0][0] == plain.keys[0][0]


def test_what_waits_for_the_vae_is_pictures_and_no_tensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture with many variations all wait at once, and fp32 pixels take four times as much."""
    made: list[int] = []

    def counted(image: Image.Image) -> torch.Tensor:
        made.append(1)
        return to_pixels(image)

    monkeypatch.setattr(variants, "to_pixels", counted)
    vae = CountingVae()
    ahead: list[int] = []

    def encoding(pixels: torch.Tensor) -> torch.Tensor:
        ahead.append(len(made) - len(vae.calls))
        return vae(pixels)

    encode(samples_in(folder), encoding, variations=Variations(mirror=True, crop=True, count=5))
    assert len(ahead) == 120 and set(ahead) == {1}


def test_an_edit_after_the_scan_is_seen(folder: Path) -> None:
    samples = samples_in(folder)
    Image.new("RGB", (500, 100), "red").save(folder / "0.png")
    assert encode(samples, CountingVae()).sizes[0][0].original == (100, 500)


def test_a_moved_picture_is_a_hit(folder: Path, store: LatentStore) -> None:
    encode(samples_in(folder), CountingVae(), store)
    (folder / "3.png").rename(folder / "elsewhere.png")
    vae = CountingVae()
    encode(samples_in(folder), vae, store)
    assert vae.calls == []


def test_latent_key(make_picture: MakePicture) -> None:
    path = make_picture("a.png")
    key = key_of(path)
    assert key == key_of(path)
    assert len({key, key_of(path, (32, 64)), key_of(path, fingerprint="other")}) == 3
    path.write_bytes(path.read_bytes() + b"\0")
    assert key_of(path) != key
    encoded = encode((Sample(path, "", 1, "", (24, 16)),), CountingVae())
    assert encoded.keys == ((key_of(path),),)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "shape", "channels", "dtype", "name", "nan"])
def test_a_damaged_cache_file_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    import safetensors.torch

    store = DiskStore(tmp_path / "cache")
    good = encode(samples_in(folder), CountingVae(), store).moments(0)
    path = store.path(key_of(folder / "0.png"))
    tensors = {
        "shape": {"moments": torch.zeros(8, 8, 4)},
        "channels": {"moments": torch.zeros(4, 4, 8)},
        "dtype": {"moments": torch.zeros(8, 4, 8, dtype=torch.float16)},
        "name": {"latents": torch.zeros(8, 4, 8)},
        "nan": {"moments": torch.full((8, 4, 8), float("nan"))},
    }
    data = path.read_bytes()
    files = {"empty": b"", "cut": data[:-5], "noise": b"x" * 300}
    path.write_bytes(files[damage] if damage in files else safetensors.torch.save(tensors[damage]))
    vae = CountingVae()
    again = encode(samples_in(folder), vae, store)
    assert len(vae.calls) == 1
    assert torch.equal(again.moments(0), good)
    assert path.read_bytes() == data


def test_the_disk_cache_leaves_no_other_files(folder: Path, tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "cache")
    encode(samples_in(folder), CountingVae(), store)
    assert len(list((tmp_path / "cache").iterdir())) == 12
    assert all(path.suffix == ".safetensors" and len(path.stem) == 64 for path in (tmp_path / "cache").iterdir())


def test_what_is_on_disk_does_not_pile_up_in_memory(folder: Path, store: LatentStore) -> None:
    """Three epochs, and no more tensors are alive than one picture's; kept in memory, all of them are."""
    there: list[StorageWeakRef] = []

    class Watched:
        def put(self, key: str, moments: torch.Tensor) -> None:
            there.append(StorageWeakRef(moments.untyped_storage()))
            store.put(key, moments)

        def get(self, key: str, channels: int = 8) -> torch.Tensor | None:
            moments = store.get(key, channels)
            if moments is not None:
                there.append(StorageWeakRef(moments.untyped_storage()))
            return moments

    samples = samples_in(folder)
    for encoded in (encode(samples, CountingVae(), Watched()), encode(samples, CountingVae(), Watched())):
        for _ in range(3):
            for index in range(len(encoded)):
                encoded.moments(index)
    gc.collect()
    alive = len({ref.cdata for ref in there if not ref.expired()})
    assert alive == (len(samples) if isinstance(store, MemoryStore) else 0)


def test_a_full_disk_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(latent_store, "write_atomically", full)
    with pytest.raises(DatasetError, match=r"No space left on device.*keep them in memory"):
        encode(samples_in(folder), CountingVae(), DiskStore(tmp_path / "cache"))


def test_moments_that_vanish_are_named(folder: Path, tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "cache")
    encoded = encode(samples_in(folder), CountingVae(), store)
    store.path(encoded.keys[2][0]).unlink()
    with pytest.raises(DatasetError, match=r"2\.png' was removed or damaged"):
        encoded.moments(2)


def test_pictures_that_break_while_decoding_are_left_out(folder: Path, store: LatentStore) -> None:
    samples = samples_in(folder)
    data = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(data[: data.index(b"IDAT") + 8])
    (folder / "7.png").unlink()
    seen = list[int]()
    encoded = encode(samples, CountingVae(), store, progress=lambda done, total: seen.append(done))
    assert [s.path.name for s in encoded.skipped] == ["4.png", "7.png"]
    assert encoded.samples == tuple(s for s in samples if s.path.name not in ("4.png", "7.png"))
    assert seen == list(range(13))
    picture, size = fit(load_picture(folder / "5.png"), 64, 32)
    assert torch.equal(encoded.moments(4), CountingVae()(to_pixels(picture)[None])[0])
    assert encoded.sizes[4] == (size,)


def test_nothing_left_is_an_error(folder: Path) -> None:
    samples = samples_in(folder)
    for sample in samples:
        sample.path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"None of the 12 .*0\.png \(the file is empty\).* 9 more; replace them"):
        encode(samples, CountingVae())


@pytest.mark.parametrize("after", [0, 5])
def test_stopping_keeps_what_is_there(folder: Path, store: LatentStore, after: int) -> None:
    vae = CountingVae()
    encoded = encode(samples_in(folder), vae, store, stopping=lambda: len(vae.calls) >= after)
    assert encoded.stopped and len(encoded) == len(vae.calls) == after
    assert [encoded.moments(index).shape for index in range(after)] == [(8, 4, 8)] * after


def test_stopping_does_not_wait_for_the_variations_of_a_picture(folder: Path) -> None:
    """Of one with a hundred of them few are encoded, and none of it is kept for this run."""
    vae, store = CountingVae(), MemoryStore()
    encoded = encode_pictures(
        samples_in(folder), FixedSize(64, 32), vae, "print", store, lambda done, total: None,
        lambda: len(vae.calls) >= 3, Variations(crop=True, count=100),
    )  # fmt: skip
    assert encoded.stopped and len(encoded) == 0 and len(vae.calls) == 3


def test_an_error_of_the_vae_comes_through_and_leaves_no_thread(folder: Path) -> None:
    def broken(pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        encode(samples_in(folder), broken)
    assert threading.active_count() == before


def test_few_pictures_are_ahead_of_the_vae(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, done, most = list[Path](), 0, 0

    def counting(path: Path, data: bytes | None = None) -> Image.Image:
        started.append(path)
        return load_picture(path, data)

    def vae(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal done, most
        threading.Event().wait(0.01)  # time for the readers to run ahead as far as they may
        most, done = max(most, len(started) - done), done + 1
        return CountingVae()(pixels)

    monkeypatch.setattr(variants, "load_picture", counting)
    encode(samples_in(folder), vae)
    assert len(started) == 12
    assert 1 < most <= encoding._AHEAD < 12


def test_pictures_are_decoded_beside_the_encoder(folder: Path) -> None:
    names = set[str]()

    class Spy:
        def sizes_for(self, original: tuple[int, int]) -> tuple[tuple[int, int], ...]:
            names.add(threading.current_thread().name.rsplit("_")[0])
            return ((64, 32),)

    def vae(pixels: torch.Tensor) -> torch.Tensor:
        assert threading.current_thread() is threading.main_thread() and not torch.is_grad_enabled()
        return CountingVae()(pixels)

    encode(samples_in(folder), vae, sizer=Spy())
    assert names == {"trainer-pictures"}


@pytest.mark.parametrize(
    ("vae", "said"),
    [
        (lambda pixels: CountingVae()(pixels) * float("nan"), r"0\.png' into values that are not numbers"),
        (lambda pixels: CountingVae()(pixels)[:, :4], r"\(1, 4, 4, 8\) and not \(1, 8, 4, 8\)"),
    ],
)
def test_useless_moments_are_refused_and_not_kept(
    folder: Path, tmp_path: Path, vae: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        encode(samples_in(folder), vae, DiskStore(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_moments_are_kept_in_full_precision_and_apart_from_the_vae(folder: Path) -> None:
    buffer = torch.zeros(1, 8, 4, 8, dtype=torch.bfloat16)

    def reusing(pixels: torch.Tensor) -> torch.Tensor:
        return buffer.copy_(CountingVae()(pixels))

    encoded = encode(samples_in(folder), reusing)
    assert encoded.moments(0).dtype == torch.float32
    assert not torch.equal(encoded.moments(0), encoded.moments(11))
