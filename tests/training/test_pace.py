"""A run that crawls is noticed once, from medians; no time passes in these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_trainer import memory
from lib_trainer.training.pace import Pace
from lib_trainer.work import events as ev
from tests.training.watched import Watched


def told(seconds: list[float]) -> list[tuple[int, tuple[float, float]]]:
    pace = Pace()
    answers = [(number, pace.step(one)) for number, one in enumerate(seconds, start=1)]
    return [(number, answer) for number, answer in answers if answer is not None]


def test_a_run_that_begins_to_crawl_is_told_once() -> None:
    assert told([9.0] * 3 + [0.5] * 20 + [4.0] * 30) == [(26, (4.0, 0.5))]


@pytest.mark.parametrize(
    "seconds",
    [
        [0.5] * 60,
        [60.0] * 3 + [0.5] * 60,  # kernels are chosen
        [0.5] * 20 + [30.0, 30.0] + [0.5] * 40,  # a picture in between
        [0.5, 1.5] * 30,  # two sizes of pictures
        [0.01] * 20 + [0.2] * 30,  # too fast to matter
        [0.5] * 20 + [1.9] * 30,  # slower, but no crawling
    ],
    ids=["even", "warm-up", "single", "sizes", "fast", "slower"],
)
def test_what_is_no_crawling(seconds: list[float]) -> None:
    assert told(seconds) == []


def test_it_is_told_while_the_run_goes_on(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "step", lambda pace, seconds: (9.0, 1.5))
    assert watched.run(pictures, training__max_steps=1).state == "finished"
    (message,) = (event for event in watched.of(ev.Message) if event.level == "warning")
    said = str(message.text)
    assert said.startswith("A step takes 9.0 s now and took 1.5 s at first: if another program")
    assert "network.rank (now 4)" in said


def test_a_full_card_on_windows_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 8 * 2**30))
    assert not memory.spills(card) and not memory.spills(torch.device("cpu"))
    monkeypatch.setattr("lib_trainer.memory.os.name", "nt")
    assert memory.spills(card)
    pace = Pace()
    assert "Windows lends" in str(pace.told(0.1, card)) and pace.told(0.1, card) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 8 * 2**30))
    assert not memory.spills(card)
