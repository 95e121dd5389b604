"""The Dataset tab's commands, from what is pressed to what is shown, without a browser."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_trainer.dataset.desk import DatasetDesk
from lib_trainer.refusals import DatasetError
from lib_trainer.ui.dataset.actions import COMMANDS, PANELS, DatasetActions
from lib_trainer.ui.dataset.common import note_form
from lib_trainer.ui.dataset.page import shown
from lib_trainer.ui.dataset.view import SESSIONS, View

ROOT = Path(__file__).parents[2]


class Scores:
    def scores(self, picture: Path) -> dict[str, float]:
        return {"long_hair": 0.9, "smile": 0.2} if picture.stem == "0" else {}

    def origins(self, picture: Path) -> dict[str, str]:
        return {"long_hair": "wd-mini", "alba": "hand"} if picture.stem == "0" else {}


class Tab:
    """A browser tab's view and its commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.actions = DatasetActions(DatasetDesk(len, lambda folder: Scores()))
        self.view = View()
        self.panels: dict[str, str] = {}

    def __call__(self, do: str, **values: Any) -> str:
        """Send a command; answers with the notice, without its markup."""
        self.panels = self.actions.run(self.view, {"do": do, "scope": "everything", **values})
        assert set(self.panels) == set(PANELS)
        return re.sub(r"<[^>]+>", "", self.panels["notice"]).replace("&#x27;", "'").replace("&quot;", '"')

    def text(self, name: str) -> str:
        return (self.root / "3_alba" / name).read_text("utf-8")


@pytest.fixture
def tab(tmp_path: Path) -> Tab:
    folder = tmp_path / "set" / "3_alba"
    folder.mkdir(parents=True)
    for index in range(70):
        Image.new("RGB", (64 + index, 64), (index * 3, 100, 200 - index)).save(folder / f"{index}.png")
        tags = ["alba", "1girl", "long hair", "weapon", "sword"] + (["smile"] if index % 2 else [])
        (folder / f"{index}.txt").write_text(", ".join(tags), encoding="utf-8")
    tab = Tab(tmp_path / "set")
    assert tab("open", folder=str(tab.root)) == "70 pictures are open."
    return tab


def test_a_folder_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    tab = Tab(tmp_path)
    assert tab(
        "open", folder=str(tmp_path / "no<b>")
    ) == f"The folder of pictures '{tmp_path}/no&lt;b&gt;' does not exist: check its path.".replace("&#x27;", "'")
    assert tab("undo") == "No set is open: give its folder and press Open."


def test_a_folder_in_quotes_is_the_same_set_with_the_same_scores(tab: Tab) -> None:
    asked: list[Path] = []

    def scores(folder: Path) -> Scores:
        asked.append(folder)
        return Scores()

    desk = DatasetDesk(len, scores)
    spelt = (f" '{tab.root}' ", str(tab.root), f'"{tab.root}"', f"{tab.root}/../{tab.root.name}")
    assert len({id(desk.open(one)) for one in spelt}) == 1 and asked == [tab.root]
    with pytest.raises(DatasetError, match="~nobody"):
        desk.open("~nobody-of-this-name/set")


def test_open_shows_pictures_tags_and_the_first_caption(tab: Tab) -> None:
    assert tab.panels["gallery"].count("<figure") == 60
    assert "page <input" in tab.panels["gallery"]
    assert "6 tags" in tab.panels["tags"]
    assert tab.panels["picture"].count('class="dataset-chip ') == 5
    assert "score 0.90, by wd-mini" in tab.panels["picture"]
    assert "70 of 70 pictures" in tab.panels["bar"]
    tab("page", to=1)
    assert tab.panels["gallery"].count("<figure") == 10
    tab("page", text="x")
    assert "Page: it must be a whole number." in tab.panels["notice"]


def test_filter_select_and_what_is_typed(tab: Tab) -> None:
    tab("filter", text="smile AND NOT 2girls")
    assert "35 of 70 pictures" in tab.panels["bar"]
    tab("select", what="all")
    assert "35 selected" in tab.panels["bar"]
    tab("clear")
    tab("select", what="invert")
    assert "35 selected" in tab.panels["bar"]
    tab("click", key="3_alba/3.png")
    tab("click", key="3_alba/6.png", mode="range")
    assert json.loads(re.search(r'data-marks="([^"]*)"', tab.panels["marks"])[1].replace("&quot;", '"'))[
        "selected"
    ] == [f"3_alba/{index}.png" for index in (3, 4, 5, 6)]
    tab("click", key="3_alba/5.png", mode="toggle")
    assert len(tab.view.selected) == 3
    assert "Filter: " in tab("filter", text="(smile")
    assert tab.view.text == ""
    tab("check-typed", what="filter", text="(smile")
    assert "a closing bracket is missing" in tab.panels["marks"]
    tab("check-typed", what="edit", edit="regex-tags", values={"expression": "["})
    assert "is not a regular expression" in tab.panels["marks"]
    tab("tag", tag="smile")
    tab("tag", tag="sword", without=True)
    assert tab.view.text == "smile, NOT sword"
    tab("clear")
    tab("filter", text="origin:hand")
    assert "1 of 70" in tab.panels["bar"]
    tab("tags", text="swo")
    assert tab.panels["tags"].count("<tr>") == 1 and ">sword<" in tab.panels["tags"]


def bucket_rows(html: str) -> dict[tuple[int, int], int]:
    found = re.findall(r"(\d+) × (\d+)</button></td><td>(\d+)</td>", html)
    return {(int(width), int(height)): int(count) for width, height, count in found}


def test_buckets_show_where_pictures_are_trained_and_what_is_cut_away(tab: Tab) -> None:
    form = {"dataset.width": "128", "dataset.height": "128", "buckets.enabled": True, "buckets.step": "32",
            "buckets.low": "64", "buckets.high": "256"}  # fmt: skip
    tab("tab", tab="buckets", form=form)
    rows = bucket_rows(tab.panels["work"])
    assert rows.keys() == {(128, 128), (160, 96)} and sum(rows.values()) == 70, "as the training form has it"
    assert 'name="buckets.step"' in tab.panels["work"] and 'value="32"' in tab.panels["work"]
    tab("buckets", bucket="160x96", sizes=form)
    cells = re.findall(
        r'<figure title="3_alba/(\d+).png">.*?<i style="left:(.*?)%;top:(.*?)%;width:(.*?)%;height:(.*?)%">',
        tab.panels["work"],
    )
    assert len(cells) == min(48, rows[160, 96])
    for name, left, top, width, height in cells:
        across = 64 + int(name)
        scale = max(160 / across, 96 / 64)
        assert float(width) == pytest.approx(100 * 160 / across / scale, abs=0.01)
        assert float(height) == pytest.approx(100 * 96 / 64 / scale, abs=0.01)
        assert float(left) == pytest.approx((100 - float(width)) / 2, abs=1)
        assert float(top) == pytest.approx((100 - float(height)) / 2, abs=1)
    tab("buckets", bucket="", sizes={**form, "buckets.enabled": False})
    assert bucket_rows(tab.panels["work"]) == {(128, 128): 70}
    tab("tab", tab="buckets", form=form)
    assert tab.view.sizes["buckets.enabled"] is False, "what was typed here stays"
    tab("as-trained", form=form)
    assert tab.view.sizes["buckets.enabled"] is True


def test_sizes_that_are_none_are_said_where_they_were_typed(tab: Tab) -> None:
    tab("tab", tab="buckets")
    assert "Training width" in tab("buckets", sizes={"dataset.width": "wide", "dataset.height": "64"})
    assert "must be" in tab.panels["work"], "and in place of the table, while they stand there"
    assert (
        "further"
        in tab("buckets", sizes={"buckets.enabled": True, "buckets.resolutions": "huge", "dataset.width": "64"}).lower()
    )


def test_encoded_pictures_are_counted_and_removed(tab: Tab, tmp_path: Path) -> None:
    tab("tab", tab="buckets")
    assert "Encoded pictures" not in tab.panels["work"], "nobody has said where they are"
    assert "not known" in tab("cache-look", days="30")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{1:064x}.safetensors").write_bytes(b"x" * 2048)
    tab.view.open.latents = lambda: cache
    tab("cache-look", days="0")
    assert "Encoded pictures that are kept: 1, 2 KiB" in tab.panels["work"]
    assert "no number of days" in tab("cache-look", days="soon")
    assert "1 encoded picture removed: 2 KiB" in tab("cache-prune", days=0)
    assert list(cache.glob("*.safetensors")) == [] and "Remove" not in tab.panels["work"]


def test_chips(tab: Tab) -> None:
    seen = tab.text("0.txt")
    tab("chip", op="add", text="hat, alba", seen=seen)
    assert tab.text("0.txt") == "alba, 1girl, long hair, weapon, sword, hat"
    tab("chip", op="remove", index=1, seen=tab.text("0.txt"))
    tab("chip", op="move", index=4, to=0, seen=tab.text("0.txt"))
    tab("chip", op="rename", index=3, text="axe, halberd", seen=tab.text("0.txt"))
    assert tab.text("0.txt") == "hat, alba, long hair, axe, halberd, sword"
    assert "has changed in the meantime" in tab("chip", op="remove", index=0, seen="something else")
    for _ in range(4):
        tab("undo")
    assert tab.text("0.txt") == seen
    assert tab("undo") == "There is nothing to undo."
    tab("redo")
    assert tab.text("0.txt").endswith("hat")


def test_a_caption_changed_outside_shows_both_and_mine_can_be_kept(tab: Tab) -> None:
    seen = tab.text("0.txt")
    (tab.root / "3_alba" / "0.txt").write_text("theirs", encoding="utf-8")
    assert "changed outside of this editor" in tab("chip", op="add", text="mine", seen=seen)
    assert "theirs" in tab.panels["preview"] and "sword, mine" in tab.panels["preview"]
    assert tab.text("0.txt") == "theirs"
    tab("keep-mine")
    assert tab.text("0.txt").endswith("sword, mine")
    assert "theirs" not in tab.panels["preview"]
    tab("undo")
    assert tab.text("0.txt") == "theirs"
    (tab.root / "3_alba" / "1.txt").write_text("outside", encoding="utf-8")
    assert tab("outside") == "Changed on the disk: 1 caption."
    tab("reload")
    assert tab("outside") == "Nothing has changed."


def test_an_edit_is_previewed_applied_and_undone(tab: Tab) -> None:
    before = tab.text("1.txt")
    tab("preview", edit="remove", values={"tags": "smile"})
    assert "35 of 70 captions would change." in tab.panels["preview"]
    assert "Removed: smile (35)" in tab.panels["preview"]
    assert "<del>smile</del>" in tab.panels["preview"]
    assert tab.text("1.txt") == before
    assert "35 captions changed" in tab("apply")
    assert "smile" not in tab.text("1.txt") and tab.panels["preview"] == ""
    assert "Undone: Remove smile." in tab("undo")
    assert tab.text("1.txt") == before
    assert "Tags is empty" in tab("preview", edit="remove", values={"tags": ""})
    tab("preview", edit="remove", values={"tags": "absent"})
    assert "none of 70 captions would change" in tab.panels["preview"]
    assert "No picture is chosen" in tab("preview", edit="dedupe", scope="selection")


def test_undo_is_refused_for_what_changed_outside_and_done_for_the_rest(tab: Tab) -> None:
    before = tab.text("1.txt")
    tab("preview", edit="remove", values={"tags": "smile"})
    tab("apply")
    (tab.root / "3_alba" / "3.txt").write_text("theirs", encoding="utf-8")
    assert "changed outside" in tab("undo")
    assert "Undo the others" in tab.panels["preview"]
    assert "Undone but for 1 caption: Remove smile." in tab("undo-others")
    assert tab.text("1.txt") == before and tab.text("3.txt") == "theirs"
    assert "Undo the others" not in tab.panels["preview"]


def test_plans_propose_preview_and_apply(tab: Tab) -> None:
    tab("tab", tab="prune")
    for school in ("delete-all", "delete-some", "keep-all", "style"):
        tab("plan", plan=school, trigger="alba", share="50", protected="")
        assert "dataset-proposal" in tab.panels["work"] and len(tab.view.proposal) == 5
    tab("plan", plan="delete-all", trigger="alba", share="50", protected="")
    assert 'value="long hair" checked' in tab.panels["work"] and 'value="1girl">' in tab.panels["work"]
    assert "Trigger word is empty" in tab("plan-preview", trigger="", chosen=["long hair"])
    tab("plan-preview", trigger="alba", chosen=["long hair"])
    tab("apply")
    assert tab.text("0.txt") == "alba, 1girl, weapon, sword"
    tab("implied")
    assert 'value="sword\tweapon" checked' in tab.panels["work"]
    tab("implied-preview", chosen=["sword\tweapon"])
    tab("apply")
    assert tab.text("0.txt") == "alba, 1girl, sword"
    assert "Share = 'x': it must be a number." in tab("plan", plan="delete-all", trigger="a", share="x")


def test_snapshots_and_history(tab: Tab) -> None:
    tab("tab", tab="history")
    assert tab("snapshot", text="first") == "The snapshot was taken."
    tab("preview", edit="add", values={"tags": "new"})
    tab("apply")
    tab("compare", name="first")
    assert "70 of 70 captions would change." in tab.panels["preview"]
    tab("apply")
    assert "new" not in tab.text("0.txt")
    assert tab.panels["work"].count("70 files") == 2


def check(tab: Tab, **size: Any) -> None:
    tab("tab", tab="check")
    tab("check", **{"width": "64", "height": "64", "mirrored": False, **size})
    finish(tab)


def finish(tab: Tab) -> None:
    """Wait for a check that is under way."""
    tab("poll")
    until = time.monotonic() + 60
    while "data-poll" in tab.panels["work"] and time.monotonic() < until:
        time.sleep(0.05)
        tab("poll")


def test_check_finds_shows_and_mends(tab: Tab) -> None:
    folder = tab.root / "3_alba"
    (folder / "copy.png").write_bytes((folder / "5.png").read_bytes())
    (folder / "1.txt").write_text("alba, lnog hair, long hair", encoding="utf-8")
    (folder / "2.txt").write_text("", encoding="utf-8")
    tab("open", folder=str(tab.root))
    check(tab)
    report = tab.view.open.report
    assert report is not None and report.checked == 71
    kinds = [one.kind for one in report.findings]
    assert {"duplicate", "misspelt", "empty", "no-caption"} <= set(kinds)
    tab("show", number=kinds.index("empty"))
    assert "1 of 71 pictures" in tab.panels["bar"] and "With an empty caption" in tab.panels["bar"]
    tab("remedy", number=kinds.index("empty"), trigger="alba")
    assert "1 of 1 captions would change." in tab.panels["preview"]
    tab("remedy", number=kinds.index("misspelt"))
    tab("apply")
    assert tab.text("1.txt").count("long hair") == 2 and "lnog" not in tab.text("1.txt")
    finish(tab)
    tab("remedy", number=[one.kind for one in tab.view.open.report.findings].index("duplicate"))
    assert "1 file would go to the set's trash." in tab.panels["preview"]
    assert "Move 1 picture to the trash: Undo brings them back." in tab("apply")
    assert not ((folder / "copy.png").exists() and (folder / "5.png").exists())
    tab("undo")
    assert (folder / "copy.png").exists() and (folder / "5.png").exists()
    finish(tab)
    tab("clear")
    tab("filter", text="trouble:duplicate")
    assert "2 of 71" in tab.panels["bar"]
    tab("export")
    file = json.loads(tab.panels["download"])
    assert file["name"] == "set-report.html" and "<svg" in file["text"] and "data:image/jpeg" in file["text"]
    assert "<script" not in file["text"] and "http" not in file["text"]
    tab("trash", keys=["3_alba/0.png"])
    assert not (folder / "0.png").exists() and not (folder / "0.txt").exists()


def test_nothing_leaves_a_set_unasked(tab: Tab) -> None:
    """The trash of a finding is a dry run, for the size of the training form; then the report is made anew."""
    files = sorted(path.name for path in (tab.root / "3_alba").iterdir())
    tab("tab", tab="check", train=["64", "96"])
    assert 'id="dataset_width" class="dataset-input dataset-short" value="64"' in tab.panels["work"]
    assert 'id="dataset_height" class="dataset-input dataset-short" value="96"' in tab.panels["work"]
    check(tab, height="96")
    number = [one.kind for one in tab.view.open.report.findings].index("small")
    of = int(re.search(rf"&quot;number&quot;: {number}, &quot;of&quot;: (\d+)", tab.panels["work"])[1])
    old = {"number": number, "of": of}
    assert tab("remedy", **old) == ""
    assert "140 files would go to the set's trash." in tab.panels["preview"].replace("&#x27;", "'")
    assert sorted(path.name for path in (tab.root / "3_alba").iterdir()) == files
    tab("cancel")
    assert tab.panels["preview"] == ""
    tab("remedy", **old)
    assert "Move 70 pictures to the trash: Undo brings them back." in tab("apply")
    finish(tab)
    assert tab.view.open.report.total == 0
    for command in ("show", "remedy"):
        assert "The set has changed since this report" in tab(command, **old)
    tab("undo")
    finish(tab)
    assert sorted(path.name for path in (tab.root / "3_alba").iterdir()) == files
    assert "The set has changed since this report" in tab("remedy", **old), "as many findings, of another report"


def test_the_size_is_the_forms_until_another_is_typed(tab: Tab) -> None:
    tab("tab", tab="check", train=["768", "512"])
    assert tab.view.size == ("768", "512")
    tab("poll", train=["640", "640"], width="768", height="512")
    assert tab.view.size == ("640", "640"), "it follows the form"
    tab("poll", train=["640", "640"], width="1024", height="640")
    tab("poll", train=["512", "512"], width="1024", height="640")
    assert tab.view.size == ("1024", "640")
    for nonsense in (None, ["", ""], ["0", "64"], ["x", "64"], ["64"]):
        view = View()
        note_form(view, {"train": nonsense})
        assert view.size == ("512", "512")


def test_a_conversion_is_shown_before_it_is_done(tab: Tab) -> None:
    before = "grüne Augen".encode("cp1252")
    (tab.root / "3_alba" / "0.txt").write_bytes(before)
    tab("reload")
    check(tab)
    tab("remedy", number=[one.kind for one in tab.view.open.report.findings].index("unreadable"))
    assert "1 file would be written as UTF-8." in tab.panels["preview"] and "grüne Augen" in tab.panels["preview"]
    assert (tab.root / "3_alba" / "0.txt").read_bytes() == before
    tab("apply")
    assert tab.text("0.txt") == "grüne Augen"
    tab("undo")
    assert (tab.root / "3_alba" / "0.txt").read_bytes() == before


def test_captions_of_another_name_are_renamed_when_it_is_applied(tab: Tab) -> None:
    folder = tab.root / "3_alba"
    (folder / "0.txt").rename(folder / "0.caption")
    tab("reload")
    check(tab)
    tab("remedy", number=[one.remedy for one in tab.view.open.report.findings].index("rename"))
    assert "1 file would be renamed." in tab.panels["preview"] and "3_alba/0.txt" in tab.panels["preview"]
    assert (folder / "0.caption").exists()
    tab("apply")
    assert (folder / "0.txt").exists() and not (folder / "0.caption").exists()
    tab("undo")
    assert (folder / "0.caption").exists()


def test_what_is_not_ticked_is_said(tab: Tab) -> None:
    tab("tab", tab="prune")
    tab("plan", plan="delete-all", trigger="alba", share="100", protected="* hair")
    assert "Nothing is ticked: the tags that the plan would take are protected." in tab.panels["work"]
    assert 'value="100"' in tab.panels["work"] and 'value="* hair"' in tab.panels["work"], "what was typed stays"
    tab("plan", plan="style", trigger="alba", share="100", protected="")
    assert "Nothing is ticked: no tag of style stands on 100% of these pictures" in tab.panels["work"]
    tab("plan", plan="keep-all", trigger="alba", share="50", protected="")
    assert "Nothing is ticked: this plan keeps every tag." in tab.panels["work"]
    assert "Nothing is ticked: tick the tags that the trigger word is to take." in tab("plan-preview", chosen=[])
    tab("implied")
    assert "Nothing is ticked: tick the tags that are to go." in tab("implied-preview", chosen=[])
    assert tab.view.preview is None
    assert "No folder is given" in tab("train", folder=" ") and tab("train", folder=str(tab.root)) == ""


def test_an_unexpected_error_is_a_sentence_and_its_trace_is_logged(
    tab: Tab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object, **options: object) -> None:
        raise RuntimeError("a bug <b>")

    monkeypatch.setitem(COMMANDS, "tags", broken)
    assert "Unexpected error, see the console: RuntimeError: a bug &lt;b&gt;" in tab("tags", text="x")
    monkeypatch.setattr("lib_trainer.dataset.desk.make_report", broken)
    check(tab)
    assert "Unexpected error, see the console: RuntimeError: a bug &lt;b&gt;" in tab.panels["work"]
    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == 2 and "'tags'" in traces[0].getMessage()
    monkeypatch.undo()
    check(tab)
    assert "Unexpected" not in tab.panels["work"] and "dataset-report" in tab.panels["work"]


def test_as_many_lines_as_findings_are_told(tab: Tab) -> None:
    for index in range(3):
        (tab.root / "3_alba" / f"{index}.txt").write_text("", encoding="utf-8")
    tab("open", folder=str(tab.root))
    check(tab)
    report = re.sub(r"<svg.*?</svg>", "", tab.panels["work"])
    told = int(re.search(r", (\d+) findings?", report)[1])
    titles = re.findall(r"<summary>[^<]*<span>(?:(\d+) findings)?", report)
    assert told == sum(int(count) if count else 1 for count in titles)


def test_names_and_tags_are_escaped(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    Image.new("RGB", (64, 64)).save(root / "a&'b.png")
    (root / "a&'b.txt").write_text('<script>x</script>, "quoted"', encoding="utf-8")
    tab = Tab(root)
    tab("open", folder=str(root))
    check(tab)
    tab("tab", tab="history")
    tab("preview", edit="remove", values={"tags": "<script>x</script>"})
    assert not any("<script" in panel for panel in tab.panels.values())


def test_only_what_changed_is_sent(tab: Tab) -> None:
    first = shown(tab.view, tab.panels)
    tab("click", key="3_alba/4.png")
    sent = dict(zip(PANELS, shown(tab.view, tab.panels), strict=True))
    assert all("value" in update for update in first)
    assert "value" not in sent["gallery"] and "value" not in sent["tags"] and "value" in sent["marks"]


def test_each_tab_of_a_browser_has_a_view_of_its_own_and_few_are_kept(tab: Tab) -> None:
    sessions = tab.actions.sessions
    one, other = sessions.view("one"), sessions.view("other")
    assert one is sessions.view("one") is not other
    tab.actions.run(one, {"do": "open", "folder": str(tab.root)})
    assert one is sessions.view("one") and one.open is not None and other.open is None
    for number in range(SESSIONS):
        sessions.view(f"later {number}")
    assert sessions.view("one") is not one, "the oldest has gone; its tab opens its set again"


def test_what_an_answer_that_was_lost_has_shown_is_sent_again(tab: Tab) -> None:
    sessions = tab.actions.sessions
    view = sessions.view("one")
    shown(view, tab.panels)
    sessions.sent(view, "1")
    assert not any("value" in update for update in shown(sessions.view("one", "1"), tab.panels))
    sessions.sent(view, "2")
    assert all("value" in update for update in shown(sessions.view("one", "1"), tab.panels)), "2 never came"


def test_every_command_that_the_script_and_the_panels_send_is_known() -> None:
    script = (ROOT / "javascript" / "dataset.js").read_text("utf-8")
    named = set(re.findall(r'do: "([a-z-]+)"', script))
    for path in (ROOT / "lib_trainer" / "ui" / "dataset").glob("*.py"):
        source = path.read_text("utf-8")
        named |= set(re.findall(r"""(?:button\([^()]*?, |command\()["']([a-z-]+)["']""", source))
        named |= set(re.findall(r'data-(?:enter|typed)="([a-z-]+)"', source))
    assert len(named) > 20
    assert named - {"open", "train"} <= set(COMMANDS)
