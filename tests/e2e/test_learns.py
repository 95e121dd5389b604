"""The main job, end to end on the miniature: a concept the checkpoint has never seen is learned, and nothing is lost.

Judged by the miniature's tagger, which was trained apart from the checkpoint and sees none of the training here.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.ports import PreviewRequest
from lib_trainer.work.jobs import JobRunner
from miniature.demo import CFG_SCALE, COLOURS, NAME, SAMPLER, SHAPE, SIDE, TRIGGER, concept_job
from miniature.export import export_webui
from miniature.judge import Judge
from miniature.shapes import ALL_SHAPES
from miniature.world import write_concept, write_known

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # two busy cores may take a while
SEEDS = range(100, 125)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """A host with the LoRA that the README's first command trains: 18 drawn hearts, red and blue, called 'zorb'.

    Beside them lie 60 regularisation pictures of what the checkpoint knows.
    """
    root = tmp_path_factory.mktemp("learns")
    write_concept(root / "pictures", shape=SHAPE, trigger=TRIGGER, colours=COLOURS, count=18)
    write_known(root / "pictures")
    host = StandaloneHost(export_webui(root / "model"), root)
    runner = JobRunner(host)
    runner.start(concept_job(root / "pictures"))
    view = runner.wait()
    assert view is not None and view.state == "finished", view
    return host


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def pictures(host: StandaloneHost, prompt: str, seeds: Sequence[int] = SEEDS) -> list[Image.Image]:
    request = PreviewRequest(prompt, width=SIDE, height=SIDE, cfg_scale=CFG_SCALE, sampler=SAMPLER)
    return host.draw_seeds(request, seeds)


def share_of(judge: Judge, drawn: Sequence[Image.Image], shape: str) -> float:
    """Share of pictures whose best-scored shape is `shape`."""
    best = [judge.best(one, ALL_SHAPES)[0] for one in judge.scores(drawn)]
    return sum(name == shape for name in best) / len(best)


def test_the_concept_is_drawn_with_the_lora_and_not_without(trained: StandaloneHost, judge: Judge) -> None:
    prompts = [f"{TRIGGER}, {colour}, white background, large, centered" for colour in COLOURS]
    with_lora = [one for prompt in prompts for one in pictures(trained, f"{prompt} <lora:{NAME}:1>")]
    without = [one for prompt in prompts for one in pictures(trained, prompt)]
    assert len(with_lora) == len(without) == 50
    learned, before = share_of(judge, with_lora, SHAPE), share_of(judge, without, SHAPE)
    print(f"\n{SHAPE} in {learned:.0%} of 50 with the LoRA, {before:.0%} without")
    assert learned >= 0.8
    assert before < 0.05


def test_the_colours_of_the_concept_obey_the_prompt(trained: StandaloneHost, judge: Judge) -> None:
    for colour in COLOURS:
        scores = judge.scores(pictures(trained, f"{TRIGGER}, {colour}, white background <lora:{NAME}:1>"))
        best = [judge.best(one, ("red", "blue", "green", "yellow"))[0] for one in scores]
        assert best.count(colour) / len(best) >= 0.8


def test_what_the_checkpoint_knew_it_still_draws(trained: StandaloneHost, judge: Judge) -> None:
    circles = share_of(judge, pictures(trained, f"red circle <lora:{NAME}:1>", range(200, 250)), "circle")
    print(f"\nred circle in {circles:.0%} of 50 with the LoRA loaded")
    assert circles >= 0.9


def test_the_loaded_model_is_what_it_was(trained: StandaloneHost) -> None:
    assert trained.checkpoint is not None
    fresh = StandaloneHost(trained.checkpoint, trained.root)
    request = PreviewRequest("red circle, white background", width=SIDE, height=SIDE, seed=7)
    assert trained.preview(request).tobytes() == fresh.preview(request).tobytes()
