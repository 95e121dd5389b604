"""On a graphics card (`WEBUI_PRECISION=card`): half precision, full memory, models that are kept off the card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.webui.server import MORE_FLAGS, PRECISION, PROMPT, Picture, Values, Webui, take_pristine

pytestmark = pytest.mark.skipif(PRECISION != "card", reason="WEBUI_PRECISION is not card")
LOW = next((flag for flag in ("--medvram", "--lowvram") if flag in MORE_FLAGS), "")
DRAWN = {"preview__prompt": PROMPT, "preview__every": 1}
GIB = 2**30


@pytest.fixture(scope="module")
def warm(started: Webui, values: Values) -> str:
    """The kind of device that the WebUI draws on, on which torch has set up what it keeps for good."""
    kind = str(started.probe("held")["device"]).split(":")[0]
    if kind != "cpu":
        started.probe("run", values=values())
    return kind


@pytest.fixture
def card(warm: str) -> str:
    if warm == "cpu":
        pytest.skip("the WebUI runs on the processor")
    return warm


def test_the_model_is_held_in_half_precision(webui: Webui, card: str, values: Values) -> None:
    held = webui.probe("held")
    print(held, webui.probe("chosen_precision", values=values()))
    assert {precision for precision, _ in held["parts"].values()} == {"torch.float16"}
    assert held["kept away"] == bool(LOW)
    if not LOW:
        assert {device for _, device in held["parts"].values()} == {card}


@pytest.mark.skipif(not LOW, reason="the WebUI was started without --medvram and --lowvram")
@pytest.mark.parametrize("failing", [False, True])
def test_a_model_that_is_kept_off_the_card_is_there_for_the_run_alone(
    webui: Webui, pristine: Picture, values: Values, failing: bool
) -> None:
    """With the WebUI's own hooks, as it has put them there."""
    webui.txt2img()
    webui.probe("take_snapshot", label="low")
    ended = webui.probe("low_vram_run", values=values(**DRAWN), failing=failing)
    assert ended["state"] == "finished", ended
    hooks = ended["before"]
    assert hooks[0] >= (3 if LOW == "--medvram" else 15)
    assert ended["at steps"] == [0, 0, 0] and set(ended["in previews"]) == set(ended["after"]) == set(hooks)
    assert len(ended["previews"]) == len(ended["in previews"]) - failing
    assert webui.probe("compare_snapshot", label="low") == []
    assert np.array_equal(webui.txt2img(), pristine)


@pytest.fixture
def in_eight_bits(webui: Webui, card: str, pristine: Picture) -> Iterator[None]:
    """Settings, FP8 weight, chosen as the page does it: the WebUI loads its checkpoint anew."""

    def choose(option: str, precision: str) -> None:
        webui.post("/sdapi/v1/options", {"fp8_storage": option})
        webui.until(lambda: webui.probe("held")["parts"]["unet"][0] == precision, f"{precision} weights")

    usual = webui.probe("held")["parts"]["unet"][0]
    choose("Enable", "torch.float8_e4m3fn")
    yield
    choose("Disable", usual)
    webui.load("other.safetensors")  # of another .yaml, for which the model is built anew: trap 35
    webui.load("mini-sd1.safetensors")
    assert np.array_equal(webui.txt2img(), pristine)
    take_pristine(webui)  # the model is another object


def test_the_menus_fp8_weights(webui: Webui, in_eight_bits: None, values: Values) -> None:
    """Traps 14: they are widened for a run of any precision, and are the same 8 bits afterwards."""
    picture = webui.txt2img()
    webui.txt2img()
    webui.probe("take_snapshot", label="eight bits")
    for precision in ("auto", "fp16", "fp32"):
        for kind in ("lora", "embedding", "hypernetwork"):
            job = values(training__precision=precision, network__kind=kind, **DRAWN)
            ended = webui.probe("run", values=job)
            assert ended["state"] == "finished", (precision, kind, ended)
            different = webui.probe("compare_snapshot", label="eight bits")
            assert [one for one in different if not one.startswith("embeddings: ")] == [], (precision, kind)
            assert np.array_equal(webui.txt2img(), picture)
            webui.probe("remove_files", paths=[ended["output"]])


def test_a_card_that_is_full_is_told_and_nothing_of_the_run_stays(
    webui: Webui, card: str, pristine: Picture, values: Values
) -> None:
    """The card's own allocator refuses: while pictures are encoded, and in a step."""
    webui.txt2img()
    webui.probe("take_snapshot", label="room")
    job = values(dataset__width=512, dataset__height=512, training__batch_size=4)
    fits = webui.probe("measured_run", values=job)
    assert fits["state"] == "finished" and fits["after"] == fits["before"], fits
    needed = (fits["peak"] - fits["before"]) / 2**20
    seen = []
    for share in (0.01, 0.3, 0.6):
        ended = webui.probe("run_beside_another_program", values=job, left=needed * share)
        assert ended["after"] == ended["before"], ended
        assert webui.probe("compare_snapshot", label="room") == []
        assert np.array_equal(webui.txt2img(), pristine)
        seen.append(f"{needed * share:.0f} of {needed:.0f} MiB: {ended['state']} {ended['error']}")
    print("\n".join(seen))
    assert f"The {card} ran out of memory" in seen[0], seen
    stopped = webui.probe("measured_run", values=values(), fault="memory")
    assert f"The {card} ran out of memory at step 2" in stopped["error"], stopped
    assert stopped["after"] == stopped["before"] and stopped["output"], "the weights of step 1 are kept"
    assert webui.probe("measured_run", values=job)["state"] == "finished"


FULL: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora 4": {"training__batch_size": 4},
    "lora checkpointing": {"training__gradient_checkpointing": True},
    "lora fp8": {"training__weights": "fp8"},
    "loha": {"network__kind": "loha"},
    "embedding": {"network__kind": "embedding"},
    "hypernetwork": {"network__kind": "hypernetwork"},
    "checkpoint": {"network__kind": "checkpoint"},
}
SIZED: dict[str, Any] = {"network__rank": 32, "network__alpha": 16.0, "training__max_steps": 4}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_model_of_the_published_size_needs_what_the_page_says(
    webui: Webui, card: str, values: Values, family: str
) -> None:
    """Forecast and measured peak, and the same picture before and after; with hooks and without."""
    side = 512 if family == "sd1" else 1024
    size = {"width": side, "height": side, "steps": 4}
    webui.load(webui.probe("write_full_size", family=family, clip_folder=str(webui.models / "clip")))
    drawn = webui.txt2img(**size)
    assert np.array_equal(webui.txt2img(**size), drawn), "the WebUI itself draws differently each time"
    kinds = FULL if family == "sd1" else {"lora checkpointing": FULL["lora checkpointing"], "lora": {}}
    wrong = []
    for name, changes in kinds.items():
        job = values(**SIZED | {"dataset__width": side, "dataset__height": side} | changes)
        foreseen = webui.probe("foreseen", values=job)
        ended = webui.probe("measured_run", values=job)
        same = np.array_equal(webui.txt2img(**size), drawn)
        training, whole = foreseen["phases"]["training"], max(foreseen["phases"].values())
        ratio = training / ended["training"]
        told = (
            f"{family} {name}: foreseen {training / GIB:.2f}, peak {ended['training'] / GIB:.2f} GiB, ratio "
            f"{ratio:.3f} (with encoding {whole / GIB:.2f}, {ended['peak'] / GIB:.2f}); {ended['state']}, "
            f"{ended['error'] or 'no error'}, same picture {same}, "
            f"{(ended['after'] - ended['before']) / 2**20:.1f} MiB left"
        )
        print(told, flush=True)
        assert "GiB" in foreseen["line"], foreseen
        webui.probe("remove_files", paths=[ended["output"]] if ended["output"] else [])
        if ended["state"] != "finished" or not same or not 0.9 < ratio < 1.1 or ended["after"] != ended["before"]:
            wrong.append(told)
    assert wrong == []
