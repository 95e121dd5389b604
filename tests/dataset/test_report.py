"""What is found on a set whose faults were made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_trainer.captions.document import Caption
from lib_trainer.captions.knowledge import built_in
from lib_trainer.captions.tokens import TokenCounter
from lib_trainer.dataset import facts as facts_module
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.facts import FactsCache, PictureFacts, duplicates, near_duplicates
from lib_trainer.dataset.library import open_library
from lib_trainer.dataset.report import Report, make_report
from lib_trainer.dataset.scan import scan_folder
from lib_trainer.ui.dataset.report import charts_html
from miniature.world import combos, draw, random_scene


def word_length(word: str) -> int:
    return len(word)


def scene(seed: int, size: tuple[int, int] = (512, 512)) -> Image.Image:
    return draw(random_scene(np.random.default_rng(seed), combos()), size)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two concepts with one fault of every kind."""
    root = tmp_path / "set"
    for folder in ("10_alba", "2_bruno", "notes"):
        (root / folder).mkdir(parents=True)
    for index in range(6):
        scene(index).save(root / "10_alba" / f"{index}.png")
        (root / "10_alba" / f"{index}.txt").write_text("alba, 1girl, solo", encoding="utf-8")
    scene(20).save(root / "2_bruno" / "0.png")
    (root / "2_bruno" / "0.txt").write_text("bruno, eyepatch", encoding="utf-8")
    alba = root / "10_alba"
    scene(7, (256, 512)).save(alba / "small.png")
    scene(8, (1600, 600)).save(alba / "wide.png")
    shutil.copyfile(alba / "0.png", alba / "same.png")
    Image.open(alba / "1.png").save(alba / "near.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    scene(9).save(alba / "turned.jpg", exif=turned)
    scene(10).convert("RGBA").save(alba / "alpha.png")
    (alba / "broken.png").write_bytes((alba / "2.png").read_bytes()[:200])
    (alba / "small.txt").write_text("", encoding="utf-8")
    (alba / "wide.txt").write_text("alba, " + "x" * 230, encoding="utf-8")
    (alba / "alpha.txt").write_bytes("grün".encode("cp1252"))
    (root / "orphan.txt").write_text("alone", encoding="utf-8")
    scene(11).save(root / "notes" / "n.png")
    return root


def reported(root: Path, **options: bool) -> Report:
    editor, cache = Editor(root), FactsCache(root)
    return make_report(editor, cache.get(editor.keys), TokenCounter(word_length), built_in(), **options)  # type: ignore[arg-type]


def test_every_fault_is_found_and_leads_to_its_pictures(root: Path) -> None:
    report = reported(root, mirrored=True)
    found = {one.kind: set(one.pictures) for one in report.findings}
    a = "10_alba/"
    assert found["corrupt"] == {a + "broken.png"}
    assert found["small"] == {a + "small.png"}
    assert found["aspect"] == {a + "wide.png"}  # 1 : 2 is not over twice
    assert found["duplicate"] == {a + "0.png", a + "same.png"}
    assert found["near-duplicate"] == {a + "1.png", a + "near.jpg"}
    assert found["rotated"] == {a + "turned.jpg"}
    assert found["alpha"] == {a + "alpha.png"}
    assert found["unreadable"] == {a + "alpha.png"}
    assert found["empty"] == {a + "small.png"}
    assert found["no-caption"] == {a + n for n in ("same.png", "near.jpg", "turned.jpg", "broken.png")} | {
        "notes/n.png"
    }
    assert found["untrained"] == {"notes/n.png"}
    assert found["long225"] == {a + "wide.png"}
    assert found["one-sided"] == {"2_bruno/0.png"}
    assert next(one for one in report.findings if one.kind == "orphan").paths == ("orphan.txt",)
    balance = next(one for one in report.findings if one.kind == "balance")
    assert "10_alba 130 times and 2_bruno 2 times" in str(balance.text)
    assert report.total == report.checked == 15
    assert sum(report.sizes.values()) == 14
    assert report.troubles()["2_bruno/0.png"] >= {"one-sided"}


def test_one_sided_features_are_fine_without_mirroring(root: Path) -> None:
    assert "one-sided" not in {one.kind for one in reported(root).findings}


def test_pictures_are_decoded_once_and_again_when_they_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = facts_module.look_at
    monkeypatch.setattr(facts_module, "look_at", lambda path: asked.append(path.name) or real(path))
    keys = ["10_alba/0.png", "10_alba/1.png"]
    FactsCache(root).get(keys)
    cache = FactsCache(root)
    assert cache.get(keys)[keys[0]].size == (512, 512)
    assert asked == ["0.png", "1.png"]
    scene(30, (640, 512)).save(root / keys[0])
    assert cache.get(keys)[keys[0]].size == (640, 512)
    assert asked == ["0.png", "1.png", "0.png"]
    assert cache.size(keys[0]) == (640, 512)


def test_a_check_can_be_stopped_and_keeps_what_it_has(root: Path) -> None:
    cache = FactsCache(root)
    keys = Editor(root).keys
    assert cache.get(keys, stopping=lambda: True) == {}
    told: list[tuple[int, int]] = []
    assert len(cache.get(keys, lambda done, total: told.append((done, total)))) == len(keys)
    assert told[-1] == (len(keys), len(keys))


def test_a_broken_cache_is_no_cache(root: Path) -> None:
    place = root / ".trainer" / "thumbnails"
    place.mkdir(parents=True)
    (place / "cache.sqlite").write_bytes(b"no database" * 100)
    assert FactsCache(root).get(["10_alba/0.png"])["10_alba/0.png"].size == (512, 512)


def test_different_scenes_are_no_duplicates(tmp_path: Path) -> None:
    for index in range(40):
        scene(index, (96, 96)).save(tmp_path / f"{index}.png")
    found = FactsCache(tmp_path).get([f"{index}.png" for index in range(40)])
    assert duplicates(found) == []
    for group in near_duplicates(found):
        shapes = {random_scene(np.random.default_rng(int(key[:-4])), combos()).combo for key in group}
        assert len(shapes) == 1, group


def made_up(seed: int, count: int, originals: int, spread: int) -> dict[str, PictureFacts]:
    """Pictures near to some others: some look the same, some by way of others, and some hardly."""
    chance = np.random.default_rng(seed)
    prints = chance.integers(8, 248, (originals, 72), dtype=np.uint8)
    facts = {}
    for number in range(count):
        own = prints[chance.integers(originals)].copy()
        own[:16] = chance.integers(0, 256, 16)
        for bit in chance.integers(0, 64, chance.integers(0, spread)).tolist():
            own[16 + bit // 8] ^= np.uint8(1 << bit % 8)
        own[24:] += np.uint8(chance.integers(0, spread))
        facts[f"{number}.png"] = PictureFacts((1000 + 5 * int(chance.integers(0, spread)), 1000), prints=own.tobytes())
    return facts


def by_every_pair(facts: dict[str, PictureFacts]) -> list[tuple[str, ...]]:
    """`near_duplicates`, as its words say it."""
    looks = facts_module._Looks(list(facts.values()), 3, 6.0, 0.02)
    groups = [{index} for index in range(len(facts))]
    for index in range(len(facts)):
        for other in range(index + 1, len(facts)):
            if looks.alike(index, np.array([other]))[0] and groups[index] is not groups[other]:
                groups[index] |= groups[other]
                for one in groups[other]:
                    groups[one] = groups[index]
    found = {min(group): tuple(f"{one}.png" for one in sorted(group)) for group in groups if len(group) > 1}
    return [found[first] for first in sorted(found)]


@pytest.mark.parametrize("seed", range(6))
def test_near_duplicates_are_those_of_every_pair(seed: int) -> None:
    found = made_up(seed, count=40, originals=2, spread=2 + seed)
    assert near_duplicates(found) == by_every_pair(found) and len(near_duplicates(found)) > 0


def test_pictures_that_look_the_same_are_not_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of 1,500 of them would grow with the square of their number."""
    compared, alike = [0], facts_module._Looks.alike

    def counting(self: Any, index: int, others: Any) -> Any:
        compared[0] += len(others)
        return alike(self, index, others)

    monkeypatch.setattr(facts_module._Looks, "alike", counting)
    found = made_up(0, count=200, originals=1, spread=2)
    assert [len(group) for group in near_duplicates(found)] == [200]
    assert compared[0] < 10 * 200


def test_the_buckets_are_those_of_a_run(tmp_path: Path) -> None:
    for number, size in enumerate(((3000, 2000), (2400, 1600), (512, 512), (200, 400))):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a", encoding="utf-8")
    buckets = reported(tmp_path).buckets
    assert {size: one.pictures for size, one in buckets.items()} == {(640, 384): 2, (512, 512): 1, (320, 704): 1}
    assert buckets[512, 512].cropped == 0
    assert buckets[640, 384].cropped == pytest.approx(1 - 1.5 / (640 / 384))


def test_tokens_are_counted_by_words() -> None:
    counter = TokenCounter(word_length)
    assert counter(Caption.parse("ab, c ||| d\ne")) == len("ab,c,d,e")


def test_clip_counts_words_as_it_counts_the_whole() -> None:
    from lib_trainer.cli.captions import clip_tokens
    from lib_trainer.host.standalone.tokenizer import load_tokenizer

    for text in (
        "1girl, long hair, saber (fate), :d, don't look",
        "A photo of a woman, she's 20; 長い髪, café!",
        "a,b,c",
    ):
        whole = len(load_tokenizer()(text, add_special_tokens=False).input_ids)
        assert TokenCounter(clip_tokens)(Caption.parse(text)) == whole


def test_a_library_lists_what_the_trainer_reads_and_what_it_does_not(root: Path) -> None:
    library = open_library(f' "{root}" ')
    assert library.folders == ["2_bruno", "10_alba", "notes"]
    assert {item.folder: (item.repeats, item.concept) for item in library.items} == {
        "2_bruno": (2, "bruno"), "10_alba": (10, "alba"), "notes": (0, ""),
    }  # fmt: skip


def test_a_further_caption_of_a_picture_is_no_orphan(root: Path) -> None:
    """A job may read it, and what is called an orphan is offered for the trash."""
    for name in ("10_alba/0.long.txt", "10_alba/0.a.b.txt", "10_alba/9.long.txt", "0.long.txt"):
        (root / name).write_text("more", encoding="utf-8")
    assert open_library(root).orphans == ("0.long.txt", "10_alba/9.long.txt", "orphan.txt")


def test_what_weights_say_counts_in_an_epoch(root: Path) -> None:
    (root / "10_alba" / "weights.csv").write_text("picture,repeats\n0.png,3\n1.*,0.5\n", encoding="utf-8")
    (root / "2_bruno" / "weights.csv").write_text("no table", encoding="utf-8")
    report = reported(root)
    shown = {one.folder: (one.pictures, one.shown) for one in report.concepts}
    assert shown == {"10_alba": (13, 11 * 10 + 3 + 0.5), "2_bruno": (1, 2), "notes": (1, 0)}
    assert "10_alba: 13 × 8.73077" in charts_html(report) and ">114<" in charts_html(report)


def test_the_keep_token_separator_is_not_trained_as_text(tmp_path: Path) -> None:
    scene(1, (64, 64)).save(tmp_path / "a.png")
    for text, read in (("a ||| b, c", "a, b, c"), ("a,|||,b", "a, b"), ("a, |_|", "a, |_|")):
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        assert scan_folder(tmp_path, trigger_word="", repeats=1).samples[0].caption == read
