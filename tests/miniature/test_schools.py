"""The experiment on schools of pruning, up to where it trains (`python -m miniature.schools` does the rest)."""

from __future__ import annotations

from pathlib import Path

from miniature.schools import prune, table, write_set


def test_the_plan_deletes_the_trait_alone_and_undo_brings_it_back(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    before = {path: path.read_bytes() for path in folder.glob("*.txt")}
    assert len(before) == 18 and all(b"zorb, red, " in text for text in before.values())
    editor, deleted = prune(folder, "delete-all")
    assert deleted == ["red"]
    after = {path: path.read_bytes() for path in before}
    assert after == {path: text.replace(b"zorb, red, ", b"zorb, ") for path, text in before.items()}
    editor.undo()
    assert {path: path.read_bytes() for path in before} == before
    editor.history.close()
    editor, deleted = prune(folder, "keep-all")
    assert deleted == [] and {path: path.read_bytes() for path in before} == before
    editor.history.close()


def test_the_figures_are_a_table() -> None:
    assert table({"no LoRA": {"a": 0.125}})[-1] == "| no LoRA | 12% |"
