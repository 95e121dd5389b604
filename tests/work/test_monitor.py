"""The event stream folded into a view: the numbers are worked out by hand or by another road than the monitor's."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from PIL import Image

from lib_trainer.work import events as ev
from lib_trainer.work.monitor import CURVE_POINTS, LOG_LINES, PREVIEWS, SMOOTHING, STEPS, Monitor, RunMonitor


def step(number: int, loss: float = 0.1, total: int = 100, seconds: float = 0.5, memory: int = 0) -> ev.StepDone:
    return ev.StepDone(number, total, 1, loss, {"unet": 1e-4}, 1.0, seconds, memory)


def test_a_new_monitor_is_queued_and_active() -> None:
    view = RunMonitor("cat").view()
    assert (view.name, view.state, view.active, view.curve, view.loss) == ("cat", "queued", True, (), None)


def test_first_smoothed_loss_is_the_loss_itself() -> None:
    monitor = RunMonitor("cat")
    monitor(step(1, loss=0.75))
    assert monitor.view().curve[0].smoothed == pytest.approx(0.75)


def test_smoothing_is_the_weighted_mean_of_all_losses_so_far() -> None:
    losses = [0.9, 0.1, 0.4, 0.4, 0.7, 0.2]
    monitor = RunMonitor("cat")
    for number, loss in enumerate(losses, start=1):
        monitor(step(number, loss))
    for number, point in enumerate(monitor.view().curve, start=1):
        seen = losses[:number]
        weights = [(1 - SMOOTHING) ** (number - 1 - index) for index in range(number)]
        expected = sum(weight * loss for weight, loss in zip(weights, seen, strict=True)) / sum(weights)
        assert point.smoothed == pytest.approx(expected, rel=1e-9)


def test_smoothing_sees_the_steps_that_thinning_drops() -> None:
    monitor = RunMonitor("cat")
    total = CURVE_POINTS * 4
    for number in range(1, total + 1):
        monitor(step(number, loss=0.2 if number % 2 else 0.6, total=total))
    curve = monitor.view().curve
    assert all(point.loss == 0.6 for point in curve[1:]), "only even steps are kept by now"
    assert curve[-1].smoothed == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("steps", [1, 2, 999, CURVE_POINTS, CURVE_POINTS + 1, 5_003])
def test_the_curve_is_bounded_even_and_ends_at_the_last_step(steps: int) -> None:
    monitor = RunMonitor("cat")
    for number in range(1, steps + 1):
        monitor(step(number, total=steps))
    numbers = [point.step for point in monitor.view().curve]
    assert len(numbers) <= CURVE_POINTS + 1
    assert len(numbers) >= min(steps, CURVE_POINTS // 2)
    assert numbers[0] == 1 and numbers[-1] == steps
    assert numbers == sorted(set(numbers))
    gaps = {after - before for before, after in itertools.pairwise(numbers[1:-1])}
    assert len(gaps) <= 1, "an uneven curve looks like a change of pace"


def test_a_loss_that_is_no_number_does_not_poison_the_line() -> None:
    monitor = RunMonitor("cat")
    monitor(step(1, 0.5))
    monitor(step(2, math.nan))
    monitor(step(3, 0.5))
    curve = monitor.view().curve
    assert [point.step for point in curve] == [1, 3]
    assert curve[-1].smoothed == pytest.approx(0.5)


def test_eta_is_the_rest_at_the_pace_of_the_last_steps() -> None:
    monitor = RunMonitor("cat")
    monitor(step(1, seconds=60.0, total=200))
    for number in range(2, 102):
        monitor(step(number, seconds=0.25, total=200))
    view = monitor.view()
    assert view.steps_per_second == pytest.approx(4.0), "a slow first step is forgotten"
    assert view.eta_seconds == pytest.approx(99 / 4)


def test_eta_is_gone_and_the_clock_stands_when_the_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("lib_trainer.work.monitor.time.monotonic", lambda: now)
    monitor = RunMonitor("cat")
    monitor(step(1))
    now = 130.0
    monitor(ev.Finished(1, Path("cat.safetensors"), stopped=True))
    now = 500.0
    view = monitor.view()
    assert (view.state, view.active, view.eta_seconds, view.elapsed_seconds) == ("stopped", False, None, 30.0)
    assert view.output == Path("cat.safetensors")


def test_a_phase_shows_its_progress_until_the_steps_begin() -> None:
    monitor = RunMonitor("cat")
    monitor(ev.Phase("Caching latents", 12, 40))
    view = monitor.view()
    assert (view.state, view.progress) == ("running", ev.Phase("Caching latents", 12, 40))
    monitor(ev.Started(100, 1234, {"unet": 192}))
    view = monitor.view()
    assert (view.progress, view.total_steps) == (ev.Phase(STEPS), 100)


def test_a_phase_is_logged_once() -> None:
    monitor = RunMonitor("cat")
    for done in range(10):
        monitor(ev.Phase("Caching latents", done, 10))
    assert sum("Caching latents" in line for line in monitor.view().log) == 1


def test_failure_keeps_the_sentence_and_the_last_file() -> None:
    monitor = RunMonitor("cat")
    monitor(ev.Saved(50, Path("cat-000050.safetensors"), final=False))
    monitor(ev.Failed("Out of memory: lower the batch size."))
    view = monitor.view()
    assert (view.state, view.error) == ("failed", "Out of memory: lower the batch size.")
    assert view.output == Path("cat-000050.safetensors")


def test_previews_and_log_are_the_last_ones() -> None:
    monitor = RunMonitor("cat")
    for number in range(1, LOG_LINES + PREVIEWS + 2):
        monitor(ev.PreviewMade(number, Image.new("RGB", (1, 1)), "a cat"))
    view = monitor.view()
    assert len(view.previews) == PREVIEWS and len(view.log) == LOG_LINES
    assert view.previews[-1].number == view.previews[-1].step == LOG_LINES + PREVIEWS + 1


def test_revision_counts_events() -> None:
    monitor = RunMonitor("cat")
    before = monitor.view().revision
    monitor(ev.Message("hello"))
    monitor(step(1))
    assert monitor.view().revision == before + 2
    assert monitor.view().revision == before + 2, "looking is not an event"


def test_being_told_to_stop_is_seen_until_the_end() -> None:
    monitor = Monitor("cat", "tagging")
    monitor(ev.Phase("Scoring", 3, 9, "pictures"))
    before = monitor.view().revision
    monitor.stopping()
    monitor.stopping()
    assert monitor.view().stopping and monitor.view().revision == before + 1
    monitor(ev.Finished(stopped=True, told="3 pictures scored.", notes=("wd-mini runs on CPU.",)))
    view = monitor.view()
    assert (view.state, view.stopping, view.told, view.notes) == (
        "stopped", False, "3 pictures scored.", ("wd-mini runs on CPU.",)
    )  # fmt: skip
    monitor.stopping()
    assert not monitor.view().stopping


def test_nothing_comes_after_the_end() -> None:
    monitor = RunMonitor("cat")
    monitor(ev.Finished(1, Path("cat.safetensors")))
    ended = monitor.view()
    monitor(ev.Failed("too late"))
    monitor(step(2))
    assert monitor.view() == ended


def test_memory_is_the_peak_and_warnings_say_so() -> None:
    monitor = RunMonitor("cat")
    monitor(step(1, memory=5))
    monitor(step(2, memory=3))
    monitor(ev.Message("Two pictures have no caption.", "warning"))
    view = monitor.view()
    assert view.memory_bytes == 5
    assert view.log[-1].endswith("Warning: Two pictures have no caption.")


def test_no_control_character_comes_into_the_log() -> None:
    monitor = RunMonitor("cat")
    monitor(ev.Message("Skipped a\x1b[31m\nb.png: it is empty"))
    assert monitor.view().log[-1].endswith("Skipped a\\x1b[31m\\nb.png: it is empty")
