"""What the status panel and the chart say, and that nothing in them is taken for markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_trainer.refusals import Sentence, sentences
from lib_trainer.training.rate_answer import rate_text
from lib_trainer.ui.kit.jobs import clock
from lib_trainer.ui.kit.notices import notice_html
from lib_trainer.ui.train.chart import HEIGHT, MAX_DRAWN, WIDTH, chart_html, ticks
from lib_trainer.ui.train.held_out_chart import advice_html, held_out_html
from lib_trainer.ui.train.status import header_html, log_html, size, speed, status_html
from lib_trainer.work.events import Phase
from lib_trainer.work.monitor import HeldOutPoint, LogLine, LossPoint, RunView

EVIL = "<img src=x onerror=alert(1)>&\"'"


def test_everything_from_outside_is_escaped() -> None:
    view = RunView(
        name=EVIL,
        state="failed",
        progress=Phase(EVIL, 0, 3),
        output=Path(EVIL),
        failure=EVIL,
        learning_rates=((EVIL, 1e-4),),
        lines=(LogLine("12:00:00", EVIL),),
    )
    running = RunView(name="a", state="running", progress=Phase(EVIL))
    shown = [
        status_html(view, prefix="trainer", task_id=EVIL),
        status_html(running, prefix="trainer"),
        log_html(view),
        notice_html(EVIL, error=True),
        header_html(EVIL),
    ]
    for text in shown:
        assert "<img" not in text
        assert "&lt;img" in text


def test_a_run_shows_its_numbers() -> None:
    view = RunView(
        name="cat",
        state="running",
        progress=Phase("Training"),
        step=250,
        total_steps=1000,
        epoch=3,
        loss=0.12346,
        learning_rates=(("unet", 1e-4), ("te1", 2.5e-5)),
        steps_per_second=0.5,
        eta_seconds=1500,
        elapsed_seconds=3661,
        memory_bytes=int(5.25 * 2**30),
        curve=(LossPoint(250, 0.12345, 0.2),),
        output=Path("/loras/cat-000250.safetensors"),
    )
    text = re.sub(r"<[^>]+>", " ", status_html(view, prefix="trainer"))
    for expected in (
        "Running", "cat", "250 / 1,000", "25%", "0.1235", "0.2000", "1e-4", "2.5e-5", "2.00 s/step", "25:00", "1:01:01",
        "5.2 GiB", "/loras/cat-000250.safetensors",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_phase_has_its_own_progress() -> None:
    view = RunView(name="cat", state="running", progress=Phase("Caching latents", 12, 40), total_steps=9)
    html = status_html(view, prefix="trainer")
    assert "Caching latents 12/40" in html
    assert 'aria-valuenow="30"' in html and "trainer-bar-phase" in html


@pytest.mark.parametrize(
    ("view", "active"),
    [(None, "0"), (RunView("a", "queued"), "1"), (RunView("a", "running"), "1"), (RunView("a", "stopped"), "0")],
)
def test_the_script_is_told_whether_to_poll(view: RunView | None, active: str) -> None:
    html = status_html(view, prefix="mine", task_id="task(1)")
    assert f'data-active="{active}"' in html
    assert 'data-prefix="mine"' in html and 'data-task="task(1)"' in html


def test_notices_repeat_and_disappear() -> None:
    assert notice_html("") == ""
    assert notice_html("No.", number=1) != notice_html("No.", number=2)
    assert "trainer-notice-error" in notice_html("No.", error=True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (float("inf"), "–"), (0, "0:00"), (59.6, "1:00"), (3599.7, "1:00:00")]
)
def test_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def test_units() -> None:
    assert [speed(value) for value in (None, 4.0, 0.25)] == ["–", "4.00 steps/s", "4.00 s/step"]
    assert [size(value) for value in (0, 2**20, 1023 * 2**20, 2**33, 2**41)] == [
        "–", "1 MiB", "1023 MiB", "8.0 GiB", "2048.0 GiB",
    ]  # fmt: skip
    assert [rate_text(value) for value in (1e-4, 9.994e-5, 0.0, 1.0)] == ["1e-4", "9.99e-5", "0", "1e0"]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.031, 0.094, 5) == pytest.approx([0.04, 0.06, 0.08])
    assert all(0.5 <= tick <= 0.50001 for tick in ticks(0.5, 0.50001, 5))


def curve(*losses: float) -> list[LossPoint]:
    return [LossPoint(index, loss, sum(losses[:index]) / index) for index, loss in enumerate(losses, start=1)]


def points(html: str, name: str) -> list[tuple[float, float]]:
    found = re.search(rf'<polyline class="{name}" points="([^"]*)"', html)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.group(1).split())]


def test_the_chart_draws_both_lines_inside_its_box() -> None:
    html = chart_html(curve(*(0.3 / n for n in range(1, 200))))
    for name in ("trainer-raw", "trainer-smoothed"):
        line = points(html, name)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)
        assert line[0][1] < line[-1][1], "a falling loss goes down the picture"
        assert line[0][0] < WIDTH * 0.1 and line[-1][0] > WIDTH * 0.9, "the steps so far fill the width"


def test_one_spike_does_not_flatten_the_curve() -> None:
    losses = [0.1 + 0.01 * (n % 2) for n in range(300)]
    calm = points(chart_html(curve(*losses)), "trainer-raw")
    losses[150] = 50.0
    spiked = [LossPoint(n, loss, 0.105) for n, loss in enumerate(losses, start=1)]
    heights = [y for _, y in points(chart_html(spiked), "trainer-raw")[:100]]
    assert max(heights) - min(heights) > 0.5 * (max(y for _, y in calm) - min(y for _, y in calm))


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    html = chart_html(curve(*([0.1] * 1000)))
    line = points(html, "trainer-raw")
    assert len(line) <= MAX_DRAWN + 1
    assert "Loss at step 1000" in html


@pytest.mark.parametrize("losses", [(), (0.1,), (0.0, 0.0), (0.1, 0.1, 0.1), (1e-9, 2e-9), (1e6, 3e6)])
def test_odd_curves_are_drawn(losses: tuple[float, ...]) -> None:
    html = chart_html(curve(*losses))
    assert "nan" not in html and "inf" not in html


def test_the_held_out_loss_has_an_axis_of_its_own_and_its_lowest_is_marked() -> None:
    course = [HeldOutPoint(0, 0.130, 0.128), HeldOutPoint(50, 0.126, 0.120), HeldOutPoint(100, 0.127, 0.110)]
    html = held_out_html(course, 120, 50)
    held, trained = points(html, "trainer-held-out"), points(html, "trainer-measured")
    assert [x for x, _ in held] == [x for x, _ in trained] and held[-1][0] < WIDTH - 24
    assert held[1][1] > held[2][1] > held[0][1], "downwards is larger: lower is better"
    assert f'cx="{held[1][0]:.1f}" cy="{held[1][1]:.1f}"' in html
    assert 'aria-label="Held-out loss at step 100: 0.1270, lowest at step 50: 0.1260"' in html
    assert held_out_html(course[:1], 120, None) == ""
    start = held_out_html([HeldOutPoint(40, 0.1), *course[1:]], 120, 50)
    assert "lowest at step 50" in start and start.count("trainer-best") == 1, "the start of what is learned is no best"
    went_on = held_out_html(course, 120, None)
    assert "trainer-best" not in went_on and "lowest" not in went_on, "a run that went on kept its best before"
    alone = held_out_html([HeldOutPoint(one.step, one.held_out) for one in course], 120, 50)
    assert "trainer-measured" not in alone and "trained pictures" not in alone


def test_what_the_course_says_stands_below_it() -> None:
    view = RunView("mine", "finished", notes=(Sentence("advice.still_falling"),))
    assert "was still falling at the end" in advice_html(view)
    assert advice_html(RunView("mine", "running")) == ""


def test_charts_speak_the_pages_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "_spoken", "zh")
    html = chart_html(curve(0.3, 0.2)) + held_out_html([HeldOutPoint(40, 0.1), HeldOutPoint(50, 0.1)], 120, 50)
    for label in ("各步的损失", "平滑后", "各步的验证损失", "第 50 步", "验证图片"):
        assert label in html
    assert re.search(">[^<]*[a-z]", html) is None
