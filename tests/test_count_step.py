"""The cost of a training step, counted: see bench/count_step.py."""

from __future__ import annotations

import pytest

pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")


def test_a_step_of_sd1_stays_within_its_operations_and_traffic() -> None:
    """Batch 1 at 512², default job. sd-scripts' form of the adapter on the same model takes more than twice as many."""
    from bench.count_step import count_step, sd1

    model = sd1()
    ours, theirs = count_step(model), count_step(model, "sd-scripts")
    assert ours.operations <= 3_700 and ours.memory_bound <= 4.4e9
    assert theirs.operations > 7_000 and theirs.memory_bound > 14e9
    assert ours.kept < theirs.kept
    assert count_step(model, kind="loha").kept <= 1.4 * ours.kept
