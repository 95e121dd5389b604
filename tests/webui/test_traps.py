"""The host traps of a run: what generation leaves on the model is neither learned nor lost.

Traps are numbered as in docs/host-traps.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.webui.server import PROMPT, Picture, Values, Webui, model_hash

pytestmark = pytest.mark.usefixtures("unharmed")
OURS = "lib_trainer.host.webui.model"


@pytest.fixture(scope="module")
def reference(started: Webui, pristine: Picture, values: Values) -> str:
    """What the job learns on a host that nobody has used otherwise."""
    return learned(started, values())


def learned(webui: Webui, job: dict[str, Any], **how: Any) -> str:
    ended = webui.probe("run", values=job, repeats=True, **how)
    assert ended["state"] == "finished", ended
    return model_hash(ended["output"])


def test_the_reference_repeats(webui: Webui, reference: str, values: Values) -> None:
    assert learned(webui, values()) == reference
    assert learned(webui, values(training__seed=6)) != reference


LEFT_BY_A_PICTURE: dict[str, tuple[str, dict[str, Any], str, Any]] = {
    # trap: prompt, options of the generation, the fact it leaves, what that fact is without it
    "2 a LoRA is merged": (f"{PROMPT} <lora:probe:1>", {}, "merged", 0),
    "3 a hypernetwork is on": (f"{PROMPT} <hypernet:stray:1>", {}, "hypernetworks", []),
    "8 downcast schedule": (
        PROMPT, {"override_settings": {"use_downcasted_alpha_bar": True}}, "schedule altered", False,
    ),
    "8 zero terminal SNR": (
        PROMPT, {"override_settings": {"sd_noise_schedule": "Zero Terminal SNR"}}, "schedule altered", False,
    ),
    "15 tiling": (PROMPT, {"tiling": True}, "circular", False),
}  # fmt: skip


@pytest.mark.parametrize("trap", LEFT_BY_A_PICTURE)
def test_what_the_last_picture_left_is_not_learned(
    webui: Webui, reference: str, values: Values, pristine: Picture, trap: str
) -> None:
    prompt, options, fact, nothing = LEFT_BY_A_PICTURE[trap]
    webui.probe("make_hypernetwork", name="stray")
    changed = webui.txt2img(prompt, **options)
    assert not np.array_equal(changed, pristine), "the picture would be the same without it"
    assert webui.probe("facts")[fact] != nothing, "generation leaves nothing: the test shows nothing"
    assert learned(webui, values()) == reference
    assert np.array_equal(webui.txt2img(prompt, **options), changed), "asked for again, it is there again"


def test_token_merging_is_gone_after_each_picture(webui: Webui, reference: str, values: Values) -> None:
    """Trap 15: a patch of tomesd lasts as long as a generation, also one that fails, because the WebUI sees to it."""
    webui.txt2img(override_settings={"token_merging_ratio": 0.5})
    assert learned(webui, values()) == reference


def test_an_accelerated_unet_in_the_models_place(
    webui: Webui, reference: str, values: Values, pristine: Picture
) -> None:
    """Trap 15: sd_unet."""
    webui.probe("leave", kind="unet")
    assert webui.probe("facts")["unet"] == "StrayUnet"
    assert not np.array_equal(webui.txt2img(), pristine)
    assert learned(webui, values()) == reference
    assert webui.probe("facts")["unet"] == "StrayUnet"


def test_captions_are_taken_literally(webui: Webui, reference: str, values: Values) -> None:
    """Trap 9: brackets, BREAK, the mark of a LoRA and the name of an installed embedding are text."""
    caption = "saber_(fate), [disc], (blue:1.5) BREAK <lora:probe:1> saber"
    assert webui.probe("make_embedding", name="saber") == ["saber"]
    try:
        encoded = webui.probe("encoding", caption=caption, clip_skip=1)
        assert encoded["ids"] == encoded["literal"]
        assert encoded["difference"] is None or encoded["difference"] > 1e-3, "the WebUI reads it as a prompt"
        assert learned(webui, values()) == reference
    finally:
        assert webui.probe("remove_embedding", name="saber") == []


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("words", [3, 100])
def test_plain_captions_are_encoded_as_the_same_prompt(webui: Webui, clip_skip: int, words: int) -> None:
    """Trap 10, and chunks of 75 tokens."""
    encoded = webui.probe("encoding", caption="circle " * words, clip_skip=clip_skip)
    assert encoded["shape"][1] == 77 * (1 + words // 75)
    print(encoded)
    assert encoded["exact"] < 1e-5
    assert encoded["difference"] < 1e-5 + 2 * encoded["rounding"], "half precision rounds each of the two once"


@pytest.mark.parametrize("backtrack", [0, 20])
def test_long_captions_are_parted_as_the_same_prompt(webui: Webui, backtrack: int) -> None:
    """A setting of the WebUI's says how far a full chunk steps back to its last comma."""
    webui.post("/sdapi/v1/options", {"comma_padding_backtrack": backtrack})
    try:
        encoded = webui.probe("encoding", caption=", ".join(["a circle of red and blue"] * 14), clip_skip=1)
    finally:
        webui.post("/sdapi/v1/options", {"comma_padding_backtrack": 20})
    assert encoded["shape"][1] == 2 * 77 and encoded["exact"] < 1e-5


def test_clip_skip_is_the_jobs_and_not_the_settings(webui: Webui, reference: str, values: Values) -> None:
    """Trap 10."""
    webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2})
    try:
        assert learned(webui, values()) == reference
        assert webui.probe("facts")["clip skip"] == 2
    finally:
        webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 1})
    assert learned(webui, values(training__clip_skip=2)) != reference


def test_the_model_is_called_directly_and_with_our_attention(webui: Webui, values: Values) -> None:
    """Traps 4, 5 and 6: no nested autocast, no inference-only attention, no checkpointing of ldm's own."""
    webui.probe("leave", kind="checkpointing flags")
    spied = webui.probe("spied_run", values=values(training__precision="bf16", training__gradient_checkpointing=True))
    assert spied["state"] == "finished", spied
    assert (spied["apply_model"], spied["attention"], spied["checkpoint"]) == (0, 0, 0)
    assert spied["timesteps"] == ["torch.int64"], "in bf16, 999 becomes 1000"
    assert spied["products"] == ["torch.bfloat16"]


def test_gradient_checkpointing_learns_the_same(webui: Webui, reference: str, values: Values) -> None:
    """Trap 6: recomputation loses no gradient, whatever the checkpoint's own flags say."""
    webui.probe("leave", kind="checkpointing flags")
    assert learned(webui, values()) == reference
    assert learned(webui, values(training__gradient_checkpointing=True)) == reference


@pytest.mark.parametrize("text_encoder_lr", [0.0, 1e-3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_stored_in_8_bits(webui: Webui, values: Values, precision: str, text_encoder_lr: float) -> None:
    """Trap 14: FP8 weight. The weights are widened for the run and are the same 8 bits afterwards."""
    webui.probe("leave", kind="fp8")
    webui.probe("take_snapshot", label="fp8")
    job = values(training__precision=precision, optimizer__text_encoder_lr=text_encoder_lr)
    ended = webui.probe("run", values=job)
    assert ended["state"] == "finished", ended
    assert webui.probe("compare_snapshot", label="fp8") == []


def test_a_schedule_that_the_webui_has_rounded(webui: Webui, reference: str, values: Values) -> None:
    """Trap 35: what an 8-bit checkpoint leaves behind is not learned from."""
    webui.probe("leave", kind="rounded schedule")
    assert learned(webui, values()) == reference


@pytest.mark.parametrize("flag", ["medvram", "lowvram"])
def test_hooks_that_move_parts_of_the_model_are_off_for_the_run_and_on_for_previews(
    webui: Webui, values: Values, reference: str, flag: str
) -> None:
    """Trap 13. What is learned is what is learned without them."""
    webui.probe("leave", kind=flag)
    webui.txt2img()
    webui.probe("take_snapshot", label=flag)
    for failing in (False, True):
        job = values(preview__prompt=PROMPT, preview__every=1)
        ended = webui.probe("low_vram_run", values=job, failing=failing)
        assert ended["state"] == "finished", ended
        hooks = ended["before"]
        assert hooks[0] >= (3 if flag == "medvram" else 15)
        assert ended["at steps"] == [0, 0, 0] and set(ended["in previews"]) == set(ended["after"]) == set(hooks)
        assert len(ended["previews"]) == len(ended["in previews"]) - failing
        assert model_hash(ended["output"]) == reference
        assert webui.probe("compare_snapshot", label=flag) == []


def test_a_preview_has_the_jobs_clip_skip(webui: Webui) -> None:
    """Trap 10: for that picture only, and what the user chooses meanwhile stays."""
    plain, skipped = (webui.probe("preview_clip_skip", clip_skip=number) for number in (1, 2))
    assert (plain["while"], skipped["while"]) == ([1], [2])
    assert plain["picture"] != skipped["picture"]
    assert plain["after"] == skipped["after"] == 1
    try:
        assert webui.probe("preview_clip_skip", clip_skip=2, choose=3)["after"] == 3
    finally:
        webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 1})


def test_the_fp8_menu_changed_during_a_run_does_not_swap_the_model(webui: Webui, values: Values) -> None:
    """Traps 12 and 14: the next preview would load the checkpoint anew, in 8 bits, under the run."""
    job = {"preview__prompt": PROMPT, "preview__every": 1}
    expected = webui.probe("run", values=values(**job))["previews"]
    webui.probe("leave", kind="fp8 menu")
    ended = webui.probe("run", values=values(**job), at_step={"1": "fp8"})
    assert webui.probe("facts")["fp8 menu"] == "Enable", "what was chosen stays chosen"
    assert ended["state"] == "finished", ended
    assert ended["reads"] == []
    assert ended["previews"] == expected


def test_no_layer_of_a_run_is_in_the_lora_extensions_hands(webui: Webui, reference: str, values: Values) -> None:
    """Trap 18: "Reload UI" takes the built-in extension's forwards out and puts them in again, under the run."""
    assert learned(webui, values(), at_step={"1": "reload"}) == reference
    assert webui.probe("tidy") == 1


@pytest.mark.parametrize("choose", [False, True])
def test_a_preview_keeps_what_the_user_chooses(webui: Webui, choose: bool) -> None:
    """Trap 12: a preview draws with the model in training, and the menu says what the user has chosen."""
    seen = webui.probe("own_preview", choose=choose)
    assert seen["same model"]
    assert seen["after"] == ("a third" if choose else seen["other"])


GUARDS: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    "2 a LoRA is merged": (
        [f"{OURS}:without_prompt_networks", "lib_trainer.host.webui.host:take_out_prompt_networks"],
        f"{PROMPT} <lora:probe:1>",
        {},
    ),
    "3 a hypernetwork is on": (["lib_trainer.host.ldm.model:efficient_attention"], f"{PROMPT} <hypernet:stray:1>", {}),
    "15 tiling": ([f"{OURS}:without_seams"], PROMPT, {"tiling": True}),
}


@pytest.mark.parametrize("trap", GUARDS)
def test_these_tests_notice(webui: Webui, reference: str, values: Values, trap: str) -> None:
    """Without the guard against it the trap snaps: the run fails or learns something else."""
    guards, prompt, options = GUARDS[trap]
    webui.probe("make_hypernetwork", name="stray")
    webui.txt2img(prompt, **options)
    ended = webui.probe("run", values=values(), without=guards)
    assert ended["state"] == "failed" or model_hash(ended["output"]) != reference
