"""Lists of tags, folders of models, and what is said of broken ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lib_trainer.refusals import TaggerError
from lib_trainer.tagging.models import labels as labels_module
from lib_trainer.tagging.models import wd
from lib_trainer.tagging.models.folders import at, find_taggers, pick
from lib_trainer.tagging.models.labels import CHARACTER, GENERAL, RATING, read_labels
from lib_trainer.tagging.models.registry import KINDS, KNOWN_MODELS, Tagger, known_model, threshold_of
from lib_trainer.tagging.models.wd import fingerprint
from lib_trainer.tagging.scores.table import sparse
from tests.tagging.conftest import MINI, MakeModel


def labels_from(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(text.encode())
    return read_labels(path)


def test_the_oddities_of_published_lists(tmp_path: Path) -> None:
    labels = labels_from(
        tmp_path,
        "\ufefftag_id,name,category,count\r\n9999999.0,general,9.0,1\r\n\r\n1,null,0,7\r\n2,>_<,0,3\r\n"
        '3,"don\'t_say_""lazy""",4,2\r\n4,long_hair,0,\r\n',
    )
    assert labels.names == ("general", "null", ">_<", 'don\'t_say_"lazy"', "long_hair")
    assert labels.category_array.tolist() == [RATING, GENERAL, GENERAL, CHARACTER, GENERAL]
    assert labels.spaced[2:] == (">_<", 'don\'t say "lazy"', "long hair")
    assert labels.counts == (1, 7, 3, 2, 0)


def test_categories_go_by_number_and_not_by_place(tmp_path: Path) -> None:
    labels = labels_from(tmp_path, "name,category\na,0\nb,9\nc,4\nd,0\ne,1\n")
    assert labels.category_array.tolist() == [0, 9, 4, 0, 0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a list of tags"),
        ("<html>404</html>", "is not a list of tags"),
        ("tag_id,name,category,count\n", "holds no tags"),
        ("tag_id,name,category,count\n1,a,zero,5\n", "Line 2 of"),
        ("tag_id,name,category,count\n1,a,0,5\n2\n", "Line 3 of"),
        ("tag_id,name,category,count\n1,a,0,5\n2, ,0,5\n", "Line 3 of"),
        ("tag_id,name,category,count\n1," + "a" * 200_000 + ",0,5\n", "cannot be read"),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(TaggerError, match=sentence):
        labels_from(tmp_path, text)


def test_our_session_scores_as_the_miniatures_own(mini: Tagger) -> None:
    from miniature.judge import Judge
    from miniature.world import combos, draw, random_scene

    rng = np.random.default_rng(4)
    pictures = [draw(random_scene(rng, combos()), size) for size in ((64, 64), (120, 90), (40, 71), (64, 100))]
    ours = mini.scores(mini.batch([mini.fit(picture) for picture in pictures]))
    np.testing.assert_allclose(ours, Judge().scores(pictures), atol=1e-5)
    assert mini.max_batch == 1 and mini.side == 64 and mini.device == "CPU"


def test_a_fixed_batch_and_half_precision(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wd.BATCHES, "CPU", 8)
    one = at(make_model("one", batch=1)).open()
    assert one.max_batch == 1 and at(make_model("free")).open().max_batch == 8
    half = at(make_model("half", half=True)).open()
    picture = np.full((8, 8, 3), (255, 0, 51), np.uint8)
    for tagger in (one, half):
        np.testing.assert_allclose(tagger.scores(tagger.batch([picture]))[0], [0.2, 0.0, 1.0], atol=1e-3)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_that_is_fixed_is_filled_up(make_model: MakeModel, count: int) -> None:
    tagger = at(make_model("four", batch=4)).open()
    pictures = [np.full((8, 8, 3), (255, number, 51), np.uint8) for number in range(count)]
    scores = tagger.scores(tagger.batch(pictures))
    np.testing.assert_allclose(scores, [[0.2, number / 255, 1.0] for number in range(count)], atol=1e-5)


def test_a_link_that_leads_to_itself_hides_no_tagger(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model("models/a-wd")
    try:
        (folder.parent / "loop").symlink_to("loop")
    except OSError:
        pytest.skip("links need a right here")
    assert [item.name for item in find_taggers([folder.parent])] == ["a-wd"]


def test_folders_are_found_whole_or_not(make_model: MakeModel, tmp_path: Path) -> None:
    make_model("models/tagger/a-wd")
    make_model("models/TaggerOnnx/models--SmilingWolf--wd-vit-tagger-v3/snapshots/0123abcd")
    half = make_model("models/tagger/half")
    (half / "selected_tags.csv").unlink()
    pointer = make_model("models/pointer")
    (pointer / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    found = find_taggers([tmp_path / "models", tmp_path / "nowhere", tmp_path / "models" / "tagger"])
    assert [(item.name, str(item.problem or "").split(":")[0]) for item in found] == [
        ("a-wd", ""),
        ("wd-vit-tagger-v3", ""),
        ("half", "selected_tags.csv is missing"),
        ("pointer", "model.onnx is a Git LFS pointer and not the file itself"),
    ]
    with pytest.raises(TaggerError, match=r"half' cannot be used: selected_tags.csv is missing: download"):
        found[2].open()
    assert pick(found, "a-wd") is found[0]
    assert pick(found, str(MINI)).folder == MINI
    with pytest.raises(TaggerError, match=r"no tagger called 'b' \(found: a-wd, wd-vit-tagger-v3\)"):
        pick(found, "b")


def test_a_truncated_network_is_a_sentence(make_model: MakeModel) -> None:
    folder = make_model("cut")
    data = (MINI / "model.onnx").read_bytes()
    for part in (data[: len(data) // 2], b"not a model at all", data[:1]):
        (folder / "model.onnx").write_bytes(part)
        with pytest.raises(
            TaggerError, match=r"model.onnx' is not an ONNX model or is cut short .*: download it again"
        ):
            at(folder).open()


def test_rows_and_outputs_must_agree(make_model: MakeModel) -> None:
    with pytest.raises(TaggerError, match="has 3 rows and the model 5 outputs"):
        at(make_model(outputs=5)).open()


@pytest.mark.parametrize("shape", [["b", 3, 8, 8], ["b", 8, 6, 3], ["b", 8, 8, 4]])
def test_another_kind_of_network_is_refused(make_model: MakeModel, shape: list[Any]) -> None:
    with pytest.raises(TaggerError, match="is not a WD tagger"):
        at(make_model(shape=shape)).open()


def test_the_fingerprint_is_of_the_content(make_model: MakeModel) -> None:
    one, other = make_model("one"), make_model("other")
    assert fingerprint(one) != fingerprint(MINI)
    (other / "model.onnx").write_bytes((one / "model.onnx").read_bytes())
    assert fingerprint(one) == fingerprint(other)
    with (other / "selected_tags.csv").open("a") as file:
        file.write("9,more,0,1\n")
    assert fingerprint(one) != fingerprint(other)


def test_a_fallback_to_the_processor_is_said(monkeypatch: pytest.MonkeyPatch, make_model: MakeModel) -> None:
    """onnxruntime offers CUDA, and runs on the CPU without a word, or fails."""
    import onnxruntime

    folder = make_model()
    real = onnxruntime.InferenceSession
    both = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    asked: list[list[str]] = []

    def silent(path: str, options: Any, providers: list[str]) -> Any:
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", silent)
    tagger = at(folder).open()
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"]]
    assert tagger.device == "CPU" and "offers CUDA but runs on CPU" in str(tagger.notes[0])

    def failing(path: str, options: Any, providers: list[str]) -> Any:
        if "CUDAExecutionProvider" in providers:
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", failing)
    tagger = at(folder).open()
    assert tagger.device == "CPU" and "CUDA failed (libcudnn.so.9" in str(tagger.notes[0])
    assert at(folder).open(device="cpu").notes == ()


def test_a_missing_onnxruntime_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TaggerError, match=r"onnxruntime cannot be imported .* restart the WebUI"):
        at(MINI).open()


def test_a_device_that_gives_up_is_a_sentence(make_model: MakeModel) -> None:
    tagger: Any = at(make_model()).open()

    def run(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    tagger._session = SimpleNamespace(run=run)
    with pytest.raises(TaggerError, match=r"failed on CPU \(CUDA out of memory\): free memory"):
        tagger.scores(np.zeros((1, 8, 8, 3), np.float32))


def test_scores_that_are_no_numbers_are_not_taken_for_none(make_model: MakeModel) -> None:
    """As no tags, they would take away what the tagger has written before."""
    tagger: Any = at(make_model()).open()
    tagger._session = SimpleNamespace(run=lambda *_: [np.array([[0.5, np.nan, 0.1]], np.float16)])
    with pytest.raises(TaggerError, match=r"'odd' gave scores on CPU that are no numbers: tag on the processor"):
        tagger.scores(np.zeros((1, 8, 8, 3), np.float32))


def test_of_several_outputs_that_of_the_labels_is_read(make_model: MakeModel) -> None:
    import onnx

    folder = make_model(labels=[(f"tag {number}", 0) for number in range(5)])
    network = onnx.load(folder / "model.onnx")
    scores = network.graph.output.pop()
    seen = onnx.helper.make_tensor_value_info("means", onnx.TensorProto.FLOAT, ["batch", 3])
    network.graph.output.extend([seen, scores])
    onnx.save(network, folder / "model.onnx")
    tagger = at(folder).open()
    picture = np.full((8, 8, 3), (255, 0, 51), np.uint8)
    np.testing.assert_allclose(tagger.scores(tagger.batch([picture])), [[0.2, 0.0, 1.0, 0.2, 0.0]], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "known", "threshold"),
    [
        ("wd-swinv2-tagger-v3", "wd-swinv2-tagger-v3", 0.2653),
        ("SmilingWolf_wd-v1-4-moat-tagger-v2", "wd-v1-4-moat-tagger-v2", 0.3771),
        ("wd14-vit-v3-git", "wd-vit-tagger-v3", 0.2614),
        ("wd14-convnextv2-v2", "wd-v1-4-convnextv2-tagger-v2", 0.3710),
        ("wd-vit-large-tagger-v3", "wd-vit-large-tagger-v3", 0.35),
        ("wd-mini", None, 0.35),
    ],
)
def test_names_people_give_are_known(name: str, known: str | None, threshold: float) -> None:
    found = known_model(name)
    assert (found.name if found else None) == known
    assert threshold_of(name) == threshold


def test_known_models_are_told_apart() -> None:
    assert [known_model(model.name) for model in KNOWN_MODELS] == list(KNOWN_MODELS)
    for model in KNOWN_MODELS:
        assert re.fullmatch("[0-9a-f]{40}", model.revision), "a commit, which nobody can move"
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in model.hashes.values())
        assert set(model.hashes) == set(KINDS[model.kind].files)
    networks = {(model.revision, model.hashes["model.onnx"]) for model in KNOWN_MODELS}
    assert len(networks) == len({revision for revision, _ in networks}) == len(KNOWN_MODELS)


def test_more_labels_than_scores_can_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"t{number},0\n" for number in range(4))
    monkeypatch.setattr(labels_module, "MOST", 4)
    assert len(labels_from(tmp_path, f"name,category\n{rows}")) == 4
    with pytest.raises(TaggerError, match="has 5 tags and the most that can be kept is 4"):
        labels_from(tmp_path, f"name,category\n{rows}more,0\n")


def test_the_last_label_keeps_its_number() -> None:
    scores = np.zeros(labels_module.MOST, np.float32)
    scores[-1] = 0.9
    assert sparse(scores)[0].tolist() == [labels_module.MOST - 1]
