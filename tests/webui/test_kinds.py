"""Every kind of file, trained in the real WebUI and called by its normal syntax; the WebUI's own files load here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.webui.agreement import MEAN_TOLERANCE, called_alike, drawn_alike, ours, take_along, unchanged
from tests.webui.server import Picture, Values, Webui, take_pristine

FAST: dict[str, Any] = {"training__max_steps": 6, "optimizer__unet_lr": 0.02, "optimizer__text_encoder_lr": 0.02}
KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "locon": ({"network__kind": "locon"}, "lora", "red circle <lora:{}:1>"),
    "loha": ({"network__kind": "loha"}, "lora", "red circle <lora:{}:1>"),
    "lokr": ({"network__kind": "lokr", "network__factor": 4}, "lora", "red circle <lora:{}:0.7>"),
    "lokr both": (
        {"network__kind": "lokr", "network__rank": 1, "network__decompose_both": True, "network__conv_rank": 1},
        "lora",
        "red circle <lora:{}:1>",
    ),
    "dora": ({"network__dora": True}, "lora", "red circle <lora:{}:1>"),
    "dora half": ({"network__kind": "locon", "network__dora": True}, "lora", "red circle <lora:{}:0.5>"),
    "dora loha": ({"network__kind": "loha", "network__dora": True}, "lora", "red circle <lora:{}:1>"),
    "rs-lora": ({"network__rank_stabilised": True}, "lora", "red circle <lora:{}:1>"),
    "difference": ({"network__kind": "difference"}, "lora", "red circle <lora:{}:1>"),
    "pivotal": ({"network__kind": "pivotal", "embedding__learning_rate": 0.1}, "lora", "red {0} circle <lora:{0}:1>"),
    "embedding": ({"network__kind": "embedding", "embedding__learning_rate": 0.3}, "embeddings", "{} circle"),
    "embedding pt": (
        {"network__kind": "embedding", "embedding__format": "pt", "embedding__vectors": 5},
        "embeddings",
        "a {} circle, red",
    ),
    "hypernetwork": (
        {"network__kind": "hypernetwork", "hypernetwork__learning_rate": 0.02, "hypernetwork__layer_norm": True},
        "hypernetworks",
        "red circle <hypernet:{}:1>",
    ),
    "hypernetwork half": (
        {"network__kind": "hypernetwork", "hypernetwork__learning_rate": 0.02, "hypernetwork__activation": "relu"},
        "hypernetworks",
        "red circle <hypernet:{}:0.5>",
    ),
}


@pytest.fixture
def made(webui: Webui) -> Iterator[list[str]]:
    """Files that are gone after the test."""
    paths: list[str] = []
    yield paths
    webui.probe("remove_files", paths=paths)


HEADER = ["open", "safe_open", "open", "safe_open"]
"""The first run on a checkpoint looks at its file's header, for what the model predicts; its weights are not read."""
_looked: list[str] = []
"""The runs so far: none of them after the first may look again."""


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_each_kind_works_at_once_and_the_host_is_unharmed(
    webui: Webui,
    pristine: Picture,
    unharmed: None,
    values: Values,
    pictures: Path,
    made: list[str],
    tmp_path: Path,
    name: str,
) -> None:
    changes, folder, prompt = KINDS[name]
    title = f"zrk-{name.replace(' ', '-')}"
    if name == "difference":
        changes = changes | {"difference__before": str(pictures / "0.png")}
    webui.txt2img(prompt.format(title), steps=20)  # whose encoding the WebUI keeps: it must not be taken afterwards
    ended = webui.probe(
        "run", values=values(**FAST | changes, output__name=title, preview__prompt=title, preview__every=3)
    )
    assert ended["state"] == "finished", ended
    assert len(set(ended["previews"])) == 2, "a preview shows what has been learned so far"
    assert ended["reads"] in (([],) if _looked else ([], HEADER))
    _looked.append(name)
    unchanged(webui)
    made.append(ended["output"])
    take_along(ended["output"], tmp_path / folder)
    called_alike(webui, tmp_path, prompt.format(title))


def test_a_whole_checkpoint_is_in_the_menu_and_draws_as_in_the_standalone_host(
    webui: Webui, pristine: Picture, unharmed: None, values: Values, made: list[str], tmp_path: Path
) -> None:
    webui.txt2img()
    changes = {
        "network__kind": "checkpoint", "finetune__unet_lr": 3e-3, "finetune__text_encoder_lr": 1e-3,
        "finetune__difference_rank": 16, "preview__prompt": "red circle <lora:probe:1>", "preview__every": 2,
        "training__max_steps": 4, "optimizer__ema": True,
    }  # fmt: skip
    ended = webui.probe("run", values=values(**changes, output__name="tuned"))
    assert ended["state"] == "finished", ended
    assert set(ended["reads"]) <= {"open"}, "only the list of checkpoints looks at the files, for their short hash"
    assert webui.probe("compare_snapshot", label="pristine") == []
    lora = webui.loras / "tuned.safetensors"
    made += [ended["output"], str(Path(ended["output"]).with_suffix(".yaml")), str(lora)]
    assert "tuned.safetensors" in webui.probe("known")["checkpoints"]
    assert np.array_equal(webui.txt2img(), pristine)
    before = webui.txt2img("red circle <lora:probe:1>")
    plain = webui.txt2img(steps=20).astype(int)
    through_lora = webui.txt2img("red circle <lora:tuned:1>", steps=20).astype(int)
    tuned = webui.txt2img(steps=20, override_settings={"sd_model_checkpoint": "tuned.safetensors"}).astype(int)
    mine = ours(webui, tmp_path, "red circle", "tuned.safetensors")
    assert np.abs(tuned - plain).mean() > 3 * MEAN_TOLERANCE
    assert np.abs(tuned - mine).mean() < MEAN_TOLERANCE
    assert np.abs(through_lora - tuned).mean() < 0.5 * np.abs(plain - tuned).mean()
    assert np.array_equal(webui.txt2img("red circle <lora:probe:1>"), before), "a preview's backup came back"
    take_pristine(webui)  # the WebUI has read the first checkpoint anew, and its object is a new one


@pytest.mark.parametrize("kind", ["embedding", "hypernetwork"])
def test_what_the_webuis_own_training_makes_loads_here(
    webui: Webui, pristine: Picture, pictures: Path, made: list[str], tmp_path: Path, kind: str
) -> None:
    template = tmp_path / "template.txt"
    template.write_text("a [name], [filewords]\n")
    name = f"zrk-own-{kind}"
    built = webui.probe(
        "built_in",
        kind=kind,
        name=name,
        data=str(pictures),
        template=str(template),
        logs=str(tmp_path),
        steps=4,
        rate=0.02,
    )
    made.append(built["path"])
    assert len(built["losses"]) >= 3
    webui.probe("remove_files", paths=[])  # reads the lists anew
    take_along(built["path"], tmp_path / f"{kind}s")
    drawn_alike(webui, tmp_path, f"red {name} circle" if kind == "embedding" else f"red circle <hypernet:{name}:1>")
