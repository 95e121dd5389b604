"""Preservation without class pictures: the second term is its formula, from the model itself with what learns off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib_trainer.config import field_specs
from lib_trainer.refusals import TrainerError
from lib_trainer.training.objective import Noised, Objective
from lib_trainer.training.plan import prepare
from lib_trainer.training.preservation import PlainCaptions
from lib_trainer.work import events as ev
from tests.support import draw_pictures, make_job
from tests.training.test_masks import KINDS, by_hand, masked_set
from tests.training.watched import Watched

HARD: dict[str, Any] = {
    "optimizer__unet_lr": 0.02, "optimizer__text_encoder_lr": 0.02, "embedding__learning_rate": 0.5,
    "hypernetwork__learning_rate": 0.02, "training__batch_size": 2,
}  # fmt: skip


class Calls:
    """Every call of the UNet: what it was shown and told, whether gradients were on, and what it said."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[tuple[torch.Tensor, Any, bool, torch.Tensor]] = []
        self.noised: list[Noised] = []
        predict, noise = model.predict, Objective.noised

        def called(latents: torch.Tensor, timesteps: torch.Tensor, told: Any) -> torch.Tensor:
            said: torch.Tensor = predict(latents, timesteps, told)
            self.all.append((latents.clone(), told, torch.is_grad_enabled(), said.detach().clone()))
            return said

        def noised(self_: Objective, *args: Any, **more: Any) -> Noised:
            self.noised.append(noise(self_, *args, **more))
            return self.noised[-1]

        monkeypatch.setattr(model, "predict", called)
        monkeypatch.setattr(Objective, "noised", noised)


def losses(watched: Watched) -> list[float]:
    return [event.loss for event in watched.of(ev.StepDone)]


@pytest.mark.parametrize("kind", ["lora", "locon", "loha", "pivotal", "hypernetwork", "difference"])
def test_what_is_said_without_the_trigger_word_is_held(
    kind: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dict(KINDS[kind]) | HARD
    folder = draw_pictures(tmp_path / "set", 2)
    if kind == "difference":
        own["difference__before"] = str(folder / "0.png")
    calls = Calls(watched.host.model(), monkeypatch)
    view = watched.run(folder, preserve__weight=0.5, training__max_steps=4, **own)
    assert (view.state, view.error) == ("finished", "")
    assert [grad for _, _, grad, _ in calls.all] == [True, False, True] * 4
    differ = []
    for step, (loss, noised) in enumerate(zip(losses(watched), calls.noised, strict=True)):
        learned, bare, kept = calls.all[3 * step : 3 * step + 3]
        assert torch.equal(learned[0], bare[0]) and torch.equal(learned[0], kept[0])
        whole = torch.ones(2, 1, 8, 8)
        wanted = by_hand(learned[3], noised.target, whole, 0, False) + 0.5 * by_hand(kept[3], bare[3], whole, 0, False)
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert not torch.equal(learned[1].context, kept[1].context), "the caption is another one"
        differ.append(not torch.allclose(bare[3], kept[3], atol=1e-4))
    assert differ[-1] and (kind == "hypernetwork" or not differ[0])


def test_the_bare_model_is_the_one_before_training(watched: Watched, tmp_path: Path, monkeypatch: Any) -> None:
    """The same picture, noise and caption give the same prediction from a model that nothing was put on."""
    model = watched.host.model()
    with monkeypatch.context() as patch:
        calls = Calls(model, patch)
        watched.run(draw_pictures(tmp_path / "set", 2), preserve__weight=1.0, training__max_steps=3, **HARD)
    with torch.no_grad():
        for shown, told, grad, said in calls.all:
            if not grad:
                timesteps = next(one.timesteps for one in calls.noised if torch.equal(one.latents, shown))
                assert torch.allclose(model.predict(shown, timesteps, told), said, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "embedding", "pivotal"])
def test_what_is_outside_of_a_mask_is_held(
    kind: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, own = masked_set(tmp_path / "set", 2), dict(KINDS[kind]) | HARD
    calls = Calls(watched.host.model(), monkeypatch)
    view = watched.run(folder, masks__source="file", masks__prior=2.0, masks__normalise=False, **own)
    assert (view.state, view.error) == ("finished", "")
    assert [grad for _, _, grad, _ in calls.all] == [False, True] * 3
    for step, (loss, noised) in enumerate(zip(losses(watched), calls.noised, strict=True)):
        bare, learned = calls.all[2 * step : 2 * step + 2]
        masks = noised.masks
        assert masks is not None
        inside = by_hand(learned[3], noised.target, masks, 0, False)
        assert loss == pytest.approx(inside + 2.0 * by_hand(learned[3], bare[3], 1 - masks, 0, False), rel=1e-5)
        assert torch.equal(bare[1].context, learned[1].context) == (kind == "lora" and step == 0)


def test_a_step_takes_two_and_a_half_times_the_products(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, counts = masked_set(tmp_path / "set", 1), {}
    calm = {"optimizer__text_encoder_lr": 0.0, "training__max_steps": 1, "masks__source": "file"}
    import lib_trainer.training.loop as loop

    whole = loop._gradients

    for name, changes in (("plain", {}), ("kept", {"preserve__weight": 1.0}), ("prior", {"masks__prior": 1.0})):

        def counted(*args: Any, name: str = name) -> Any:
            with FlopCounterMode(display=False) as counter:
                result = whole(*args)
            counts[name] = counter.get_total_flops()
            return result

        monkeypatch.setattr(loop, "_gradients", counted)
        assert watched.run(folder, output__name=name, **calm, **changes).state == "finished"
    assert counts["kept"] / counts["plain"] == pytest.approx(2.5, abs=0.1)
    assert counts["prior"] / counts["plain"] == pytest.approx(1.5, abs=0.1)
    assert "two and a half times" in field_specs()["preserve.weight"].help
    assert "half as long again" in field_specs()["masks.prior"].help


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network__kind": "checkpoint", "preserve__weight": 1.0}, r"preserve\.weight is not possible here: a whole"),
        (
            {"network__kind": "checkpoint", "masks__source": "file", "masks__prior": 1.0},
            r"masks\.prior is not possible",
        ),
        ({**KINDS["embedding"], "preserve__weight": 1.0}, "an embedding changes nothing but its words"),
        ({"preserve__weight": 1.0, "dataset__trigger_word": ""}, r"needs two captions that differ.*dataset\.trigger"),
    ],
)
def test_what_cannot_be_preserved_is_refused_by_name(
    changes: dict[str, Any], said: str, watched: Watched, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match=said):
        watched.run(masked_set(tmp_path / "set", 1), **changes)


@pytest.mark.parametrize(
    ("caption", "around", "plain"),
    [
        ("zork, disc, red", "", "disc, red"),
        ("a photo of Zork (fate) on a hill", "", "a photo of on a hill"),
        (r"disc, zork \(fate\), blue", "", "disc, blue"),
        ("zork, disc", "a dog", "a dog"),
        ("zork, disc", "dog, [filewords]", "dog, disc"),
        ("zork", "", ""),
        ("zorkish thing, zork-like", "", "zorkish thing, zork-like"),
    ],
)
def test_captions_without_the_trigger_word(caption: str, around: str, plain: str, tmp_path: Path) -> None:
    words = ("zork (fate)", "zork") if "fate" in caption.lower() else ("zork",)
    assert PlainCaptions(words, around)(caption) == plain
    job = make_job(tmp_path, preserve__weight=1.0, preserve__caption=around)
    from lib_trainer.kinds.captions import CaptionMaker
    from lib_trainer.kinds.registry import kind_of

    several = PlainCaptions.of(
        make_job(tmp_path, dataset__trigger_word="zrk, a red hat"), kind_of(job), CaptionMaker((), ())
    )
    assert several.words == ("zrk, a red hat", "a red hat", "zrk")
    found = PlainCaptions.of(job, kind_of(job), CaptionMaker((), (), "zork"))
    assert found.words == ("zork",) and found.around == around
    marked = make_job(tmp_path, preserve__weight=1.0, preserve__caption="a dog ||| grass")
    assert PlainCaptions.of(marked, kind_of(job), CaptionMaker((), ()))("zork") == "a dog, grass"


@pytest.mark.parametrize(
    ("caption", "around", "words"),
    [
        ("a dog on a hill", {}, ()),
        ("[name] on a hill", {}, ("dog",)),
        ("a hill", {"captions__prefix": "[name]"}, ("dog",)),
    ],
)
def test_the_name_of_the_file_is_cut_out_only_where_it_was_put_in(
    caption: str, around: dict[str, Any], words: tuple[str, ...], watched: Watched, tmp_path: Path
) -> None:
    folder = draw_pictures(tmp_path / "set", 2)
    (folder / "1.txt").write_text(caption, encoding="utf-8")
    own = {"output__name": "dog", "dataset__trigger_word": "", "preserve__weight": 1.0, "preserve__caption": "a pet"}
    found = prepare(make_job(folder, **own, **around), watched.host).plain
    assert found is not None and found.words == words
    assert found.without("a dog on a hill") == ("a on a hill" if words else "a dog on a hill")


def test_the_forecast_knows_that_the_second_term_adds_to_gradients(tmp_path: Path) -> None:
    from lib_trainer.training.forecast import Place, forecast
    from lib_trainer.training.memory_table import tables

    table = tables()["sd1"]
    place = Place(torch.device("cuda"), torch.bfloat16, dict.fromkeys(table.weights, torch.float16))

    def gradients(**changes: Any) -> tuple[int, int]:
        found = forecast(make_job(tmp_path, **changes), table, place)
        step = next(need for need in found.phases if need.phase == "training")
        return step.items["gradients"], step.items["activations"]

    plain, kept = gradients(), gradients(preserve__weight=1.0)
    assert plain[0] == 0 < kept[0] == gradients(training__gradient_accumulation=2)[0]
    assert plain[1] == kept[1], "passes follow each other"
