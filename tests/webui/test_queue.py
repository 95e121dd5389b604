"""A run in the WebUI's own queue: what waits for it, what it waits for, and what may end it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.webui.server import PROMPT, Picture, Values, Webui, take_pristine, wait_for_step, wait_until_ended

ENDLESS = 100_000
pytestmark = pytest.mark.usefixtures("unharmed", "stopped")
PROGRESS = "/sdapi/v1/progress?skip_current_image=true"


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Requests that wait for their answer."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_a_picture_waits_for_the_run(
    webui: Webui, values: Values, pristine: Picture, aside: ThreadPoolExecutor
) -> None:
    assert webui.probe("start", values=values(training__max_steps=ENDLESS, optimizer__unet_lr=0.01)) == ""
    wait_for_step(webui, 2)
    picture = aside.submit(webui.txt2img)
    webui.until(lambda: webui.get("/internal/pending-tasks")["size"] == 1, "the task in the WebUI's queue")
    wait_for_step(webui, webui.probe("view")["step"] + 3)
    assert not picture.done()
    webui.probe("command", name="stop")
    assert np.array_equal(picture.result(60), pristine), "drawn by the host's model without what was learned"
    assert wait_until_ended(webui)["state"] == "stopped"


def test_a_run_waits_for_a_picture_and_can_be_stopped_there(
    webui: Webui, values: Values, aside: ThreadPoolExecutor
) -> None:
    picture = aside.submit(webui.txt2img, steps=150, width=256, height=256)
    webui.until(lambda: webui.get(PROGRESS)["state"]["job_count"] > 0, "the picture")
    assert webui.probe("start", values=values()) == ""
    assert webui.probe("view")["phase"] == "Waiting for the queue"
    assert "under way" in webui.probe("start", values=values()), "one run at a time"
    webui.probe("command", name="stop")
    assert not picture.done()
    webui.post("/sdapi/v1/interrupt", {})
    picture.result(60)
    ended = wait_until_ended(webui)
    assert (ended["state"], ended["step"], ended["output"]) == ("stopped", 0, None)


def test_the_webuis_progress_and_its_interrupt_button(webui: Webui, values: Values) -> None:
    """Trap 16 as well: the state is given back, and the Interrupt is not left for the next picture."""
    webui.probe("start", values=values(training__max_steps=ENDLESS))
    wait_for_step(webui, 2)
    progress = webui.get(PROGRESS)
    assert progress["state"]["job"].startswith("task(training-")
    assert progress["state"]["sampling_steps"] == ENDLESS
    webui.post("/sdapi/v1/interrupt", {})
    ended = wait_until_ended(webui)
    assert ended["state"] == "stopped"
    assert Path(ended["output"]).exists()


def test_an_interrupt_is_for_the_picture_that_waits(webui: Webui, values: Values, aside: ThreadPoolExecutor) -> None:
    """Case 22: the picture is taken out of the queue, its page hears that it has ended, and the run goes on."""
    webui.probe("start", values=values(training__max_steps=ENDLESS))
    wait_for_step(webui, 2)
    body = {"prompt": PROMPT, "steps": 4, "width": 64, "height": 64, "force_task_id": "task(waits)"}
    picture = aside.submit(webui.post, "/sdapi/v1/txt2img", body)
    webui.until(lambda: webui.probe("waiting") == ["task(waits)"], "the picture in the queue")
    webui.post("/sdapi/v1/interrupt", {})
    assert webui.probe("waiting") == []
    told = webui.post("/internal/progress", {"id_task": "task(waits)", "live_preview": False})
    assert told["completed"] and not told["queued"]
    going = wait_for_step(webui, webui.probe("view")["step"] + 2)
    assert going["state"] == "running" and not picture.done()
    webui.post("/sdapi/v1/interrupt", {})
    ended = wait_until_ended(webui)
    assert ended["state"] == "stopped"
    assert any("Stopped by Interrupt in the WebUI" in line for line in ended["log"])
    assert picture.result(60)["images"] == [], "nothing is drawn when its turn comes"
    webui.txt2img()


def test_a_run_ended_by_its_own_stop_does_not_name_a_button(webui: Webui, values: Values) -> None:
    webui.probe("start", values=values(training__max_steps=ENDLESS))
    wait_for_step(webui, 1)
    webui.probe("command", name="stop")
    assert not any("Interrupt" in line for line in wait_until_ended(webui)["log"])


def test_a_run_keeps_what_it_has_where_the_process_is_about_to_end(webui: Webui, values: Values) -> None:
    """ "Apply and restart UI", and the API's server-kill and server-restart, do not ask what is under way."""
    webui.probe("start", values=values(training__max_steps=ENDLESS, output__name="zrk-kept"))
    wait_for_step(webui, 2)
    assert webui.probe("program_ends", result=str(webui.loras / "zrk-kept.safetensors")) == [True]
    assert wait_until_ended(webui)["state"] == "stopped"
    assert webui.probe("program_ends", result="/none") == [False], "nothing is waited for where nothing runs"
    assert webui.probe("heeds_ctrl_c") == "lib_trainer.host.webui.interrupts"


def test_the_apis_own_training_is_refused_beside_a_run(webui: Webui, values: Values) -> None:
    """It waits in no queue: two would train in one model, and the run learns something else or fails."""
    webui.probe("start", values=values(training__max_steps=ENDLESS))
    wait_for_step(webui, 1)
    for kind in ("embedding", "hypernetwork"):
        told = webui.post(f"/sdapi/v1/train/{kind}", {f"{kind}_name": "zrk"})["info"]
        assert "A training run has the model" in told
    wait_for_step(webui, webui.probe("view")["step"] + 2)
    webui.probe("command", name="stop")
    assert wait_until_ended(webui)["state"] == "stopped"
    assert "A training run has" not in webui.post("/sdapi/v1/train/embedding", {"embedding_name": "zrk"})["info"]


def test_the_users_embeddings_are_found_by_a_refresh_beside_a_run(webui: Webui, values: Values) -> None:
    webui.probe("make_embedding", name="zrk-own")
    try:
        webui.probe("start", values=values(training__max_steps=ENDLESS))
        wait_for_step(webui, 1)
        assert "zrk-own" in webui.probe("refreshed_embeddings")
        webui.probe("command", name="stop")
        wait_until_ended(webui)
        assert webui.probe("refreshed_embeddings") == [], "that no word can be looked up shows nothing"
    finally:
        webui.probe("remove_embedding", name="zrk-own")


@pytest.mark.parametrize("path", ["", "/sdapi/v1/unload-checkpoint"])
def test_unload_and_load_leave_the_model_with_the_run(webui: Webui, values: Values, path: str) -> None:
    if path:
        webui.probe("start", values=values(training__max_steps=ENDLESS))
        before = wait_for_step(webui, 1)["step"]
        webui.post(path, {})
        webui.post("/sdapi/v1/reload-checkpoint", {})
        wait_for_step(webui, before + 2)
        return
    ended = webui.probe("moved", values=values(training__max_steps=4), at_step={"1": "unload", "2": "load"})
    assert (ended["state"], ended["moves"]) == ("finished", [])


def test_save_now_and_preview_now(webui: Webui, values: Values) -> None:
    webui.probe("start", values=values(training__max_steps=ENDLESS, preview__prompt=PROMPT))
    wait_for_step(webui, 1)
    webui.probe("command", name="save")
    saved = webui.until(lambda: webui.probe("view")["output"], "the file")
    assert Path(saved).name.startswith("run") and "-step0" in saved
    webui.probe("command", name="sample")
    webui.until(lambda: webui.probe("view")["previews"], "the preview")
    assert webui.probe("view")["state"] == "running"


def test_the_checkpoint_menu_changed_during_a_run(webui: Webui, values: Values) -> None:
    """Trap 12: previews are still of the model in training; the switch happens when the run has ended."""
    job = {"preview__prompt": PROMPT, "training__max_steps": 4, "preview__every": 1}
    expected = webui.probe("run", values=values(**job))["previews"]
    assert len(set(expected)) == 4, "each step's picture is another"
    switched = webui.probe("run", values=values(**job), at_step={"1": "other checkpoint"})
    try:
        assert (switched["state"], switched["error"]) == ("finished", "")
        assert switched["facts"]["checkpoint"] == "mini-sd1.safetensors"
        assert switched["facts"]["menu"].startswith("other")
        assert switched["previews"] == expected
        webui.until(lambda: webui.probe("facts").get("checkpoint") == "other.safetensors", "the switch")
    finally:
        webui.post("/sdapi/v1/options", {"sd_model_checkpoint": "mini-sd1.safetensors"})
        webui.until(lambda: webui.probe("facts").get("checkpoint") == "mini-sd1.safetensors", "the way back")
        take_pristine(webui)  # the WebUI has built the model anew


def test_reload_ui_leaves_the_run_alone(webui: Webui, values: Values) -> None:
    """Also where the user hides the Train tab: the page is then a tab of its own, and finds the run."""
    webui.probe("start", values=values(training__max_steps=ENDLESS))
    before = wait_for_step(webui, 2)
    webui.post("/sdapi/v1/options", {"hidden_tabs": ["Train"]})
    try:
        webui.reload()
        tabs = webui.probe("tabs")
        assert "Trainer" in tabs and "LoRA & more" not in tabs
        after = wait_for_step(webui, webui.probe("view")["step"] + 2)
        assert (after["run"], after["state"]) == (before["run"], "running")
    finally:
        webui.post("/sdapi/v1/options", {"hidden_tabs": []})
        webui.reload()
    assert "LoRA & more" in webui.probe("tabs")
    webui.probe("command", name="stop")
    ended = wait_until_ended(webui)
    assert (ended["state"], ended["run"], ended["error"]) == ("stopped", before["run"], "")
    assert Path(ended["output"]).exists()
