"""The one runner: who is admitted, what is told whatever happens, and what is found again."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lib_trainer.refusals import ConfigError, TrainerError
from lib_trainer.work import events as ev
from lib_trainer.work import runner as runner_module
from lib_trainer.work.control import Control
from lib_trainer.work.job import Job, Work, new_id
from lib_trainer.work.runner import Queue, Runner, Running, kept
from tests import protocol

PATIENCE = 20


def busy() -> TrainerError:
    return ConfigError("Something is under way.")


@pytest.fixture
def queue() -> Queue:
    return Runner().queue("a", busy)


def start(queue: Queue, work: Work, *listeners: ev.Listener) -> Running:
    return queue.start(lambda: Job("check", "the set", work), *listeners)


def held() -> tuple[Work, threading.Event, threading.Event]:
    """Work that waits; set when it has begun, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()

    def work(control: Control, emit: ev.Listener) -> None:
        emit(ev.Phase("Looking", 0, 2))
        begun.set()
        assert go_on.wait(PATIENCE)
        emit(ev.Finished(stopped=control.stopping, told="Looked."))

    return work, begun, go_on


def test_one_job_at_a_time_and_the_next_when_it_has_ended(queue: Queue) -> None:
    work, begun, go_on = held()
    first = start(queue, work)
    assert begun.wait(PATIENCE) and queue.running
    prepared: list[bool] = []

    def prepare() -> Job:
        prepared.append(True)
        return Job("check", "another", work)

    with pytest.raises(ConfigError, match="under way"):
        queue.start(prepare)
    assert queue.last is first and not prepared, "what is refused is not even prepared"
    go_on.set()
    assert first.wait(PATIENCE).state == "finished" and not queue.running
    second = queue.start(prepare)
    assert second.wait(PATIENCE).state == "finished"
    assert first.id != second.id and queue.last is second


def test_what_cannot_be_prepared_is_not_started_and_the_last_job_stays(queue: Queue) -> None:
    done = start(queue, lambda control, emit: emit(ev.Finished()))
    done.wait(PATIENCE)

    def refuse() -> Job:
        raise ConfigError("folder.none", field="dataset.folder")

    with pytest.raises(ConfigError, match="is given"):
        queue.start(refuse)
    assert queue.last is done and not queue.running


def test_no_thread_no_job(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with pytest.raises(RuntimeError):
        start(queue, lambda control, emit: emit(ev.Finished()))
    assert queue.last is None and not queue.running, "the next one is not refused for ever"


def raising(error: BaseException) -> Work:
    def work(control: Control, emit: ev.Listener) -> None:
        raise error

    return work


def kept_at(path: Path) -> TrainerError:
    error = TrainerError("The loss is nan: lower the rate.")
    error.kept, error.trace = path, "where it was"
    return error


@pytest.mark.parametrize(
    ("work", "told", "level"),
    [
        (raising(kept_at(Path("good.safetensors"))), "The loss is nan: lower the rate.", logging.WARNING),
        (raising(RuntimeError("oh")), "Unexpected error, see the console: RuntimeError: oh", logging.ERROR),
        (raising(SystemExit(1)), "Unexpected error, see the console: SystemExit: 1", logging.ERROR),
        (lambda control, emit: None, "Unexpected error, see the console: RuntimeError: the work ended", logging.ERROR),
    ],
    ids=["refused", "defect", "exit", "silent"],
)
def test_a_job_ends_with_an_event_whatever_happens(
    queue: Queue, work: Work, told: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[ev.Event] = []
    view = start(queue, work, seen.append).wait(PATIENCE)
    protocol.check(seen, training=False)
    assert isinstance(seen[-1], ev.Failed) and str(seen[-1].error).startswith(told)
    assert (view.state, view.failure, view.output) == ("failed", seen[-1].error, seen[-1].path)
    (record,) = caplog.records
    assert record.levelno == level and "check 'the set' failed" in record.getMessage()
    assert record.exc_info or "where it was" in record.getMessage(), "its trace is in the log"


def test_a_listener_that_raises_ends_the_work_and_the_page_is_told(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    def deaf(event: ev.Event) -> None:
        raise OSError("the pipe is closed")

    view = start(queue, lambda control, emit: emit(ev.Phase("Looking")), deaf).wait(PATIENCE)
    assert view.state == "failed" and "the pipe is closed" in view.error
    assert "A listener could not be told" in caplog.text


def test_stopping_is_seen_by_the_work_and_by_every_watcher(queue: Queue) -> None:
    work, begun, go_on = held()
    running = start(queue, work)
    assert begun.wait(PATIENCE) and not running.view().stopping
    queue.stop()
    assert running.view().stopping and running.control.stopping
    go_on.set()
    view = running.wait(PATIENCE)
    assert (view.state, view.stopping, view.told) == ("stopped", False, "Looked.")
    queue.stop()
    assert running.control.stops == 1, "there is nothing to stop any more"


def test_two_queues_run_side_by_side_and_jobs_are_found_by_id() -> None:
    runner = Runner()
    works = [held() for _ in range(2)]
    started = []
    for name, (work, begun, _) in zip("ab", works, strict=True):
        started.append(start(runner.queue(name, busy), work))
        assert begun.wait(PATIENCE)
    assert runner.queue("a", busy).last is started[0], "a name has one queue"
    assert {one.id for one in runner.jobs()} == {one.id for one in started}
    assert runner.find(started[1].id) is started[1] and runner.find("another") is None
    for _, _, go_on in works:
        go_on.set()
    assert [one.wait(PATIENCE).state for one in started] == ["finished", "finished"]


def test_a_watcher_that_comes_late_sees_all_of_it(queue: Queue) -> None:
    """A reloaded page, or a second one."""
    work, begun, go_on = held()
    start(queue, work)
    assert begun.wait(PATIENCE)
    first, second = queue.view(), queue.view()
    assert first is not None and second is not None
    assert (first.id, first.progress, first.log) == (second.id, second.progress, second.log)
    go_on.set()
    queue.wait(PATIENCE)


def test_ids_differ_also_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_trainer.work.job.time.strftime", lambda form: "20261126T000000")
    found = {new_id() for _ in range(1000)}
    assert len(found) == 1000, "also within a second"
    assert all(one.replace("-", "").isalnum() for one in found), "they are file names"


def test_reload_ui_finds_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_kept", {})
    make: Callable[[], Runner] = Runner
    assert kept("a", make) is kept("a", make) is not kept("b", make)


def test_a_signals_handler_may_stop_a_job_that_its_own_thread_looks_at(queue: Queue) -> None:
    work, begun, go_on = held()
    running = start(queue, work)
    assert begun.wait(PATIENCE)
    over = threading.Event()

    def interrupted() -> None:
        with running.monitor._lock:  # as `view` holds it where Ctrl-C comes in between
            running.stop()
        over.set()

    threading.Thread(target=interrupted, daemon=True).start()
    assert over.wait(PATIENCE)
    go_on.set()
    assert running.wait(PATIENCE).state == "stopped"


def test_what_a_job_held_is_let_go_of_when_it_has_ended(queue: Queue) -> None:
    class Large:
        pass

    large = Large()
    gone = weakref.ref(large)

    def work_on(what: Large, control: Control, emit: ev.Listener) -> None:
        emit(ev.Finished(told="Done."))

    running = start(queue, partial(work_on, large))
    running.wait(PATIENCE)
    del large
    gc.collect()
    assert gone() is None and running.job.kind == "check"


@pytest.mark.parametrize("explained", [False, True])
def test_a_job_that_failed_lets_go_of_what_its_frames_held(
    queue: Queue, explained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """At once: what is on a card must not wait for the next collection."""

    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def broken() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise ValueError("no")

    def work(control: Control, emit: ev.Listener) -> None:
        try:
            broken()
        except ValueError as error:
            if explained:
                raise ConfigError("model.none_loaded") from error
            raise

    gc.disable()
    try:
        with caplog.at_level(logging.CRITICAL + 1):  # a record that is kept would keep the error
            assert start(queue, work).wait(PATIENCE).state == "failed"
        assert held[0]() is None
    finally:
        gc.enable()
