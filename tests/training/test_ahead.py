"""Items come in order from a thread that is a little ahead, and nothing of it is left."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator

import pytest

from lib_trainer.training.ahead import ahead

PATIENCE = 30.0


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "trainer-ahead"]


def test_all_items_come_in_order_from_another_thread() -> None:
    def numbers() -> Iterator[tuple[int, str]]:
        for number in range(50):
            yield number, threading.current_thread().name

    with ahead(numbers()) as items:
        assert list(items) == [(number, "trainer-ahead") for number in range(50)]
    assert threads() == []


def test_the_next_ones_are_made_while_nobody_asks_and_no_more_than_that() -> None:
    made, third = list[int](), threading.Event()

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            if number == 3:
                third.set()
            yield number

    with ahead(numbers(), count=2) as items:
        assert next(items) == 0
        assert third.wait(PATIENCE), "one is being trained, two wait, and one waits for its place"
        threads()[0].join(0.3)
        assert made == [0, 1, 2, 3]
        assert next(items) == 1
    assert threads() == []


def test_an_error_is_raised_where_its_item_is_asked_for() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"), ahead(numbers()) as items:
        assert [next(items), next(items)] == [1, 2]
        next(items)
    assert threads() == []


@pytest.mark.parametrize("asked", [0, 1])
def test_leaving_ends_the_thread_also_with_an_error(asked: int) -> None:
    with pytest.raises(RuntimeError, match="mine"), ahead(itertools.count()) as items:
        for _ in range(asked):
            next(items)
        raise RuntimeError("mine")
    assert threads() == []


def test_the_end_is_the_end() -> None:
    with ahead(iter([1])) as items:
        assert list(items) == [1] and list(items) == []


@pytest.mark.parametrize("asked", [0, 1])
def test_what_makes_them_goes_with_it_and_waits_for_no_collection(asked: int) -> None:
    """It holds all pictures of a run, which may be stopped before its first step."""

    class Pictures:
        def steps(self) -> Iterator[int]:
            yield from itertools.count()

    pictures = Pictures()
    held = weakref.ref(pictures)
    gc.disable()
    try:
        with ahead(pictures.steps()) as items:
            del pictures
            for _ in range(asked):
                next(items)
            assert held() is not None
        del items
        assert held() is None
    finally:
        gc.enable()
