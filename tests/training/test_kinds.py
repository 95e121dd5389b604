"""Whole runs of every kind of training on the standalone host, and the file that each leaves.

The `host` fixture checks after each of them that the model is untouched and draws what it drew.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_trainer.families.sd1 import SD1
from lib_trainer.kinds import checkpoint as checkpoint_kind
from lib_trainer.kinds.embedding import EmbeddingRecipe
from lib_trainer.networks.formats import description
from lib_trainer.networks.formats.embedding_file import read_embedding
from lib_trainer.networks.formats.hypernetwork_file import read_hypernetwork
from lib_trainer.networks.formats.lora_file import read_lora
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import SaveError
from lib_trainer.work import events as ev
from tests.support import network_difference, relative
from tests.training.watched import Watched

FAST: dict[str, Any] = {"optimizer__unet_lr": 0.02, "optimizer__text_encoder_lr": 0.02}
ADAPTERS = {
    "locon": {"network__kind": "locon", "network__conv_rank": 2, "network__conv_alpha": 1.0},
    "loha": {"network__kind": "loha"},
    "lokr": {"network__kind": "lokr", "network__factor": 4},
    "dora": {"network__dora": True},
    "rs-lora": {"network__rank_stabilised": True},
    "dropouts": {"network__dropout": 0.2, "network__rank_dropout": 0.2, "network__module_dropout": 0.2},
}


def drawn(watched: Watched, prompt: str) -> bytes:
    request = PreviewRequest(prompt, width=64, height=64, steps=2, seed=3)
    return watched.host.preview(request).tobytes()


def fresh(watched: Watched, **changes: Any) -> Watched:
    return Watched(watched.host)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_network_of_each_kind_is_learned_saved_and_called_by_its_name(
    watched: Watched, pictures: Path, name: str
) -> None:
    view = watched.run(pictures, **FAST, **ADAPTERS[name])
    assert (view.state, view.error) == ("finished", "")
    assert view.output == watched.host.lora_folder() / "learned.safetensors"
    tensors = watched.tensors()
    suffix = {"loha": "hada_w1_a", "lokr": "lokr_w1", "dora": "dora_scale"}.get(name, "lora_down.weight")
    assert any(key.endswith(suffix) for key in tensors)
    assert any("_resnets_" in key for key in tensors) == (name in ("locon", "loha", "lokr"))
    assert drawn(watched, "zork <lora:learned:1>") != drawn(watched, "zork")
    assert drawn(watched, "zork <lora:learned:0>") == drawn(watched, "zork")


def test_dropouts_are_seeded_and_previews_do_not_disturb_them(watched: Watched, pictures: Path) -> None:
    dropouts = ADAPTERS["dropouts"]
    watched.run(pictures, **FAST, **dropouts, output__name="plain")
    second = fresh(watched)
    second.run(pictures, **FAST, **dropouts, output__name="seen", preview__prompt="zork", preview__every=1)
    third = fresh(watched)
    third.run(pictures, **FAST, output__name="without")
    plain = watched.tensors("plain.safetensors")
    assert network_difference(plain, watched.tensors("seen.safetensors")) < 1e-4
    assert network_difference(plain, watched.tensors("without.safetensors")) > 1e-2


def test_blocks_have_ranks_and_rates_of_their_own_or_are_not_there(watched: Watched, pictures: Path) -> None:
    view = watched.run(
        pictures,
        **FAST,
        blocks__preset="no_input",
        blocks__rates="middle=0.5, output_0=0, layer_0-1=0",
        blocks__ranks="output_1=2",
    )
    assert view.state == "finished", view.error
    keys = {name.partition(".")[0] for name in watched.tensors()}
    assert not any("_down_blocks_" in key for key in keys)
    assert not any("_up_blocks_0_attentions_0_" in key for key in keys)
    assert any("_up_blocks_0_attentions_1_" in key for key in keys) and any("_mid_block_" in key for key in keys)
    assert not any("layers_0_" in key or "layers_1_" in key for key in keys)
    assert any("layers_2_" in key for key in keys)
    last = next(key for key in watched.tensors() if "up_blocks_0_attentions_1" in key and "lora_down" in key)
    other = next(key for key in watched.tensors() if "mid_block_attentions_0" in key and "lora_down" in key)
    assert (watched.tensors()[last].shape[0], watched.tensors()[other].shape[0]) == (2, 4)
    rates = watched.of(ev.StepDone)[0].learning_rates
    assert rates == {"unet ×0.5": 0.01, "unet": 0.02, "te1": 0.02}


def test_a_blocks_own_rank_keeps_the_scale_of_a_rank_stabilised_lora(watched: Watched, pictures: Path) -> None:
    job = {"network__rank_stabilised": True, "network__rank": 4, "network__alpha": 3.0, "blocks__ranks": "middle=1"}
    watched.run(pictures, **job, training__max_steps=1)
    found = watched.tensors()
    downs = {name.partition(".")[0]: one for name, one in found.items() if name.endswith("lora_down.weight")}
    assert {one.shape[0] for one in downs.values()} == {1, 4}
    assert {float(found[f"{key}.alpha"]) / one.shape[0] for key, one in downs.items()} == {1.5}


@pytest.mark.parametrize("name", ["locon", "loha", "lokr", "dora"])
def test_a_run_goes_on_from_a_file_with_its_shapes(watched: Watched, pictures: Path, name: str) -> None:
    watched.run(pictures, **FAST, **ADAPTERS[name], output__name="first")
    first = watched.tensors("first.safetensors")
    second = fresh(watched)
    path = str(watched.host.lora_folder() / "first.safetensors")
    still = {"optimizer__unet_lr": 1e-12, "optimizer__text_encoder_lr": 1e-12, "optimizer__weight_decay": 0}
    changed = ADAPTERS[name] | still | {"network__rank": 7}
    view = second.run(pictures, **changed, network__continue_from=path, output__name="second", training__max_steps=1)
    assert view.state == "finished", view.error
    assert network_difference(watched.tensors("second.safetensors"), first) < 1e-6


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_an_embedding_learns_its_rows_alone(watched: Watched, pictures: Path, ending: str) -> None:
    view = watched.run(
        pictures,
        network__kind="embedding",
        embedding__vectors=3,
        embedding__learning_rate=0.1,
        embedding__format=ending,
        dataset__trigger_word="",
        output__name="zrk-style",
    )
    assert (view.state, view.error) == ("finished", "")
    assert view.output == watched.host.embedding_folder() / f"zrk-style.{ending}"
    assert watched.of(ev.Started)[0].trained_parameters == 3 * 32
    rows = read_embedding(view.output)["te1"]
    assert tuple(rows.shape) == (3, 32)
    assert drawn(watched, "a zrk-style picture") != drawn(watched, "a zork picture")
    view.output.rename(view.output.with_name(f"other.{ending}"))
    assert drawn(watched, "a zrk-style picture") == drawn(watched, "a  zrk-style  picture")


def test_several_embeddings_learn_at_once_each_in_its_own_file(watched: Watched, pictures: Path) -> None:
    view = watched.run(
        pictures,
        network__kind="embedding",
        embedding__names="zrk-a, zrk-b",
        embedding__initial_text="red; blue disc",
        embedding__norm_decay=0.0,
        output__name="zrk-pair",
        training__max_steps=2,
    )
    assert view.state == "finished", view.error
    folder = watched.host.embedding_folder()
    assert sorted(path.name for path in folder.iterdir()) == ["zrk-a.safetensors", "zrk-b.safetensors"]
    table = watched.host.model().tokens()
    first, second = (read_embedding(folder / f"zrk-{one}.safetensors")["te1"] for one in "ab")
    start = table.rows("red")["te1"][[0, 0]]
    assert 0 < relative(first, start) < 0.1
    assert 0 < relative(second, table.rows("blue disc")["te1"]) < 0.1


def test_of_several_words_none_is_left_where_one_could_not_be_written(tmp_path: Path) -> None:
    recipe = EmbeddingRecipe.__new__(EmbeddingRecipe)
    recipe._family = SD1
    recipe.words = SimpleNamespace(rows={f"zrk-{one}": {"te1": torch.ones(1, 768)} for one in "ab"})  # type: ignore
    files = [tmp_path / f"zrk-{one}.pt" for one in "ab"]
    files[1].write_bytes(b"somebody's")
    with pytest.raises(SaveError, match=r"zrk-b\.pt"):
        recipe.save(files, {}, overwrite=False)
    assert list(tmp_path.iterdir()) == files[1:]
    assert files[1].read_bytes() == b"somebody's"
    files[1].unlink()
    recipe.save(files, {}, overwrite=False)
    assert sorted(tmp_path.iterdir()) == files


def test_the_length_of_vectors_moves_towards_the_vocabularys(watched: Watched, pictures: Path) -> None:
    changes = {"network__kind": "embedding", "embedding__learning_rate": 1e-9, "training__max_steps": 1}
    usual = watched.host.model().tokens().usual_norm()["te1"]
    long = {"string_to_param": {"*": torch.ones(1, 32)}}
    path = watched.host.root / "long.pt"
    torch.save(long, path)
    watched.run(
        pictures, **changes, embedding__norm_decay=0.25, network__continue_from=str(path), output__name="zrk-long"
    )
    length = read_embedding(watched.host.embedding_folder() / "zrk-long.safetensors")["te1"].norm()
    before = 32**0.5
    assert float(length) == pytest.approx(before + 0.25 * (usual - before), rel=1e-3)


def test_captions_come_from_a_template(watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_trainer.training import captions

    folder = watched.host.template_folder()
    folder.mkdir()
    (folder / "subject.txt").write_text("a photo of [name]\n\n[name], [filewords]\n", encoding="utf-8")
    told: list[str] = []
    original = captions.LiveCaptions.__call__

    def spied(self: Any, texts: Any, sizes: Any) -> Any:
        told.extend(texts)
        return original(self, texts, sizes)

    monkeypatch.setattr(captions.LiveCaptions, "__call__", spied)
    watched.run(
        pictures,
        network__kind="embedding",
        dataset__template="subject",
        output__name="zrk-t",
        dataset__trigger_word="",
        training__max_steps=12,
    )
    assert set(told) > {"a photo of zrk-t"}
    others = [text for text in told if text != "a photo of zrk-t"]
    assert others and all(text.startswith("zrk-t, disc, colour ") for text in others)


def test_a_hypernetwork_is_called_by_its_name(watched: Watched, pictures: Path) -> None:
    view = watched.run(
        pictures,
        network__kind="hypernetwork",
        hypernetwork__learning_rate=0.02,
        hypernetwork__layer_norm=True,
        hypernetwork__dropout_structure="0, 0.2, 0",
    )
    assert (view.state, view.error) == ("finished", "")
    assert view.output == watched.host.hypernetwork_folder() / "learned.pt"
    stored = torch.load(view.output, weights_only=True)
    assert {key for key in stored if isinstance(key, int)} == {32, 64}
    assert (stored["layer_structure"], stored["dropout_structure"]) == ([1, 2, 1], [0.0, 0.2, 0.0])
    assert drawn(watched, "zork <hypernet:learned:1>") != drawn(watched, "zork")
    assert drawn(watched, "zork <hypernet:learned:0>") == drawn(watched, "zork")
    second = fresh(watched)
    view = second.run(
        pictures,
        network__kind="hypernetwork",
        hypernetwork__learning_rate=1e-12,
        optimizer__weight_decay=0,
        network__continue_from=str(view.output),
        output__name="second",
        training__max_steps=1,
    )
    assert view.state == "finished", view.error
    one, other = (
        read_hypernetwork(watched.host.hypernetwork_folder() / f"{name}.pt") for name in ("learned", "second")
    )
    assert one.structure == other.structure
    assert network_difference(dict(one.state_dict()), dict(other.state_dict())) < 1e-6


@pytest.mark.parametrize("base", ["described", "plain"])
def test_a_checkpoint_whose_yaml_cannot_be_written_is_there_and_that_is_said(
    watched: Watched, pictures: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """It was told as not saved once, and saved a second time under another name."""

    def full(path: Path, data: bytes, *, overwrite: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(description, "write_atomically", full)
    if base == "plain":
        monkeypatch.setattr(checkpoint_kind, "carry_description", lambda *args: None)
    job = {"network__kind": "checkpoint", "finetune__unet_lr": 1e-4, "training__max_steps": 2, "output__save_every": 1}
    view = watched.run(pictures, **job, model__prediction="v")
    assert (view.state, view.error) == ("finished", "")
    folder = watched.host.checkpoint_folder()
    assert sorted(path.name for path in folder.iterdir()) == ["learned-step00000001.safetensors", "learned.safetensors"]
    told = [line for line in view.log if "is saved, but not" in line]
    assert len(told) == 2 and all("learned" in line and "free some space" in line for line in told)
    assert all((str(watched.host.checkpoint.with_suffix(".yaml")) in line) == (base == "described") for line in told)


@pytest.mark.parametrize("text_rate", [0.0, 1e-3])
def test_a_whole_checkpoint_is_written_and_the_loaded_one_is_left(
    watched: Watched, pictures: Path, text_rate: float
) -> None:
    view = watched.run(
        pictures,
        network__kind="checkpoint",
        finetune__unet_lr=1e-3,
        finetune__text_encoder_lr=text_rate,
        finetune__difference_rank=4,
    )
    assert (view.state, view.error) == ("finished", "")
    assert view.output == watched.host.checkpoint_folder() / "learned.safetensors"
    assert view.output.with_suffix(".yaml").is_file()
    base, result = load_file(watched.host.checkpoint), load_file(view.output)
    assert {name for name in base if not name.endswith("position_ids")} == result.keys()
    changed = {name for name, tensor in result.items() if not torch.equal(tensor, base[name].float())}
    assert any(name.startswith("model.diffusion_model.") for name in changed)
    assert any(name.startswith("cond_stage_model.") for name in changed) == bool(text_rate)
    assert not any(name.startswith("first_stage_model.") for name in changed)
    difference = read_lora(watched.host.lora_folder() / "learned.safetensors").tensors
    assert any("_resnets_" in name for name in difference)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_lora_of_the_difference_tells_its_progress_and_can_be_stopped(
    watched: Watched, pictures: Path, stopped: bool
) -> None:
    """The checkpoint is there by then, whatever happens to the LoRA."""

    def stop(event: ev.Event) -> None:
        if stopped and isinstance(event, ev.Phase) and (str(event.name), event.done) == (name, 1):
            watched.runner.stop()

    name, watched.react = "Making the difference a LoRA", stop
    changes = {"finetune__unet_lr": 1e-3, "finetune__difference_rank": 4, "training__max_steps": 1}
    view = watched.run(pictures, network__kind="checkpoint", **changes)
    assert (view.state, view.error, view.step) == ("finished", "", 1)
    assert view.output is not None and view.output.is_file()
    phases = [phase for phase in watched.of(ev.Phase) if str(phase.name) == name]
    total = phases[0].total
    assert total > 50 and {phase.total for phase in phases} == {total}
    assert [phase.done for phase in phases] == ([0, 1] if stopped else list(range(total + 1)))
    assert watched.files == ([] if stopped else ["learned.safetensors"])


def test_the_checkpoint_draws_what_the_preview_showed(watched: Watched, pictures: Path) -> None:
    from lib_trainer.host.standalone.host import StandaloneHost

    changes = {"network__kind": "checkpoint", "finetune__unet_lr": 2e-3, "finetune__text_encoder_lr": 2e-3}
    preview = {"preview__prompt": "a zork", "preview__every": 3, "preview__steps": 2, "preview__seed": 3}
    for ema in (False, True):
        run = fresh(watched)
        view = run.run(pictures, **changes, **preview, optimizer__ema=ema, output__name=f"ema{ema}")
        assert view.state == "finished", view.error
        assert view.output is not None
        (clip,) = (watched.host.checkpoint.parent / "clip").iterdir()
        (view.output.parent / "clip").mkdir(exist_ok=True)
        (view.output.parent / "clip" / clip.name).write_bytes(clip.read_bytes())
        again = StandaloneHost(view.output, watched.host.root, torch.device("cpu"))
        shown = run.of(ev.PreviewMade)[-1].image
        picture = again.preview(PreviewRequest("a zork", width=64, height=64, steps=2, seed=3))
        assert pixel_difference(shown, picture) < 1
        assert pixel_difference(shown, watched.host.preview(PreviewRequest("a zork", "", 64, 64, 2, seed=3))) > 1


def pixel_difference(one: Any, other: Any) -> float:
    import numpy as np

    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def test_a_checkpoint_run_that_goes_on_from_another(watched: Watched, pictures: Path) -> None:
    changes = {"network__kind": "checkpoint", "training__max_steps": 1, "optimizer__weight_decay": 0}
    watched.run(pictures, **changes, finetune__unet_lr=1e-3, output__name="first")
    path = watched.host.checkpoint_folder() / "first.safetensors"
    second = fresh(watched)
    second.run(pictures, **changes, finetune__unet_lr=1e-12, output__name="second", network__continue_from=str(path))
    one, other = load_file(path), load_file(path.with_name("second.safetensors"))
    assert network_difference(one, other) < 1e-6


def test_the_difference_of_a_run_is_its_best_low_rank_approximation() -> None:
    from lib_trainer.networks.low_rank import difference_as_lora

    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 8), (12, 8, 3, 3)):
        delta = torch.randn(shape, generator=generator)
        down, up = difference_as_lora(delta, 5)
        product = up.flatten(1) @ down.flatten(1)
        values = torch.linalg.svdvals(delta.flatten(1))
        error = (product - delta.flatten(1)).norm()
        assert float(error) == pytest.approx(float(values[5:].norm()), rel=1e-4)  # Eckart & Young
        whole = [part.flatten(1) for part in reversed(difference_as_lora(delta, 99))]
        torch.testing.assert_close(whole[0] @ whole[1], delta.flatten(1), rtol=1e-4, atol=1e-4)


def test_a_lora_with_its_embedding_in_one_file(watched: Watched, pictures: Path) -> None:
    view = watched.run(pictures, **FAST, network__kind="pivotal", embedding__learning_rate=0.1, output__name="zrk-both")
    assert (view.state, view.error) == ("finished", "")
    tensors = watched.tensors("zrk-both.safetensors")
    assert tuple(tensors["bundle_emb.zrk-both.string_to_param.*"].shape) == (2, 32)
    assert any(name.endswith("lora_down.weight") for name in tensors)
    with_word = drawn(watched, "zrk-both <lora:zrk-both:0>")
    assert with_word != drawn(watched, "zrk-both")
    assert drawn(watched, "zrk-both <lora:zrk-both:1>") != with_word
    again = fresh(watched)
    path = str(watched.host.lora_folder() / "zrk-both.safetensors")
    view = again.run(
        pictures,
        network__kind="pivotal",
        network__continue_from=path,
        embedding__names="zrk-both",
        output__name="second",
        training__max_steps=1,
    )
    assert view.state == "finished", view.error


def test_the_difference_of_a_pair_leaves_the_first_network_out(watched: Watched, pictures: Path) -> None:
    view = watched.run(
        pictures,
        **FAST,
        network__kind="difference",
        difference__before=str(pictures / "0.png"),
        difference__base_steps=3,
        training__max_steps=6,
    )
    assert (view.state, view.error) == ("finished", "")
    assert any(name.endswith("lora_up.weight") and bool(t.any()) for name, t in watched.tensors().items())
    assert drawn(watched, "zork <lora:learned:1>") != drawn(watched, "zork")


def test_one_network_of_a_difference_learns_at_a_time(watched: Watched, pictures: Path) -> None:
    watched.run(
        pictures,
        **FAST,
        network__kind="difference",
        difference__before=str(pictures / "0.png"),
        difference__base_steps=2,
        training__max_steps=4,
        optimizer__text_encoder_share=0.5,  # of each part of the run
        output__save_every=2,
    )
    early, late = watched.tensors(watched.files[0]), watched.tensors()
    ups = [name for name in late if name.endswith("lora_up.weight")]
    assert ups and not any(bool(early[name].any()) for name in ups)
    assert all(bool(late[name].any()) for name in ups)


def test_class_pictures_are_drawn_trained_beside_and_weighed(watched: Watched, pictures: Path) -> None:
    folder = watched.host.root / "class"
    changes = {"prior__class_prompt": "disc", "prior__class_folder": str(folder), "prior__class_pictures": 3}
    view = watched.run(pictures, **changes, training__max_steps=4, training__batch_size=2)
    assert (view.state, view.error) == ("finished", "")
    assert [path.name for path in sorted(folder.iterdir())] == [f"class-{n:05}.png" for n in range(3)]
    drawn_before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(set(drawn_before.values())) == 3
    second = fresh(watched)
    second.run(pictures, **changes, prior__weight=0.0, output__name="weightless", training__max_steps=4)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == drawn_before
    third = fresh(watched)
    third.run(pictures, output__name="alone", training__max_steps=4)
    assert network_difference(watched.tensors("learned.safetensors"), watched.tensors("alone.safetensors")) > 0.01


def test_an_old_pickle_is_not_executed(watched: Watched, pictures: Path, tmp_path: Path) -> None:
    from lib_trainer.refusals import ModelError
    from tests.training.test_refused_jobs import refused

    marker = tmp_path / "executed"

    class Bad:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    for name in ("embedding", "hypernetwork"):
        path = tmp_path / f"{name}.pt"
        torch.save({"string_to_param": {"*": torch.zeros(1, 32)}, "name": Bad()}, path)
        said = refused(
            watched,
            pictures,
            ModelError,
            network__kind=name,
            network__continue_from=str(path),
            output__name="zrk-bad",
        )
        assert "not a file of tensors and plain values" in said
        assert not marker.exists()


def test_embeddings_of_other_layouts_are_read(tmp_path: Path) -> None:
    rows = torch.randn(2, 32)
    save_file({"emb_params": rows}, str(tmp_path / "k.safetensors"))
    torch.save({"<cat>": rows}, tmp_path / "concept.bin")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows.requires_grad_()}}, tmp_path / "w.pt")
    for name in ("k.safetensors", "concept.bin", "w.pt"):
        assert torch.equal(read_embedding(tmp_path / name)["te1"], rows.detach())


def test_a_rate_that_is_too_high_is_named_by_the_kinds_own_fields() -> None:
    from lib_trainer.config import field_specs
    from lib_trainer.config.base import KINDS
    from lib_trainer.kinds import registry
    from lib_trainer.refusals import NumericalError
    from lib_trainer.training.loop import _check_finite

    assert tuple(registry.KINDS) == KINDS
    for name, kind in registry.KINDS.items():
        assert all(name in field_specs()[field].kinds for field in kind.rates)
    with pytest.raises(NumericalError, match=r"lower the learning rate \(hypernetwork.learning_rate\)"):
        _check_finite(3, float("nan"), 1.0, registry.KINDS["hypernetwork"].rates, scaled=False)
