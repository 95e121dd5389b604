"""The comparison of kinds: what its command line puts over the settings, and where figures are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miniature.kinds import Way, changed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("embedding.learning_rate=1e-1", ("embedding.learning_rate", 0.1)),
        ("embedding.vectors=16", ("embedding.vectors", 16)),
        ("captions.shuffle=True", ("captions.shuffle", True)),
        ("embedding.initial_text='a = b'", ("embedding.initial_text", "a = b")),
        ("embedding.initial_text=red star", ("embedding.initial_text", "red star")),
        ("embedding.initial_text=", ("embedding.initial_text", "")),
    ],
)
def test_a_change_of_the_command_line(text: str, found: tuple[str, object]) -> None:
    name, value = changed(text)
    assert (name, value) == found and type(value) is type(found[1])


def test_figures_of_other_settings_are_kept_apart(tmp_path: Path) -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    ways = [
        Way("sd1", tmp_path, 50, None, cpu, {}),
        Way("sd1", tmp_path, 50, None, cpu, {"embedding.vectors": 16}),
        Way("sd1", tmp_path, 50, None, cpu, {"embedding.vectors": 8}),
        Way("sd1", tmp_path, 50, 400, cpu, {}),
        Way("sd1", tmp_path, 50, None, card, {}),
        Way("sdxl", tmp_path, 50, None, cpu, {}),
    ]
    kept = [way.kept("LoRA", prior=prior) for way in ways for prior in (False, True)]
    assert len(set(kept)) == len(kept)
    assert {one.parent for one in kept} == {tmp_path}
