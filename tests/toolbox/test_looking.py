"""Looking into files: hashes that no container changes, what is told, duplicates and their way to the trash."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib_trainer.cli.main import main
from lib_trainer.families.family import Family
from lib_trainer.host.standalone.checkpoint import folder_inpaints
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.networks.formats.description import clues_of
from lib_trainer.networks.formats.lora_facts import with_ranks
from lib_trainer.refusals import ConfigError, ModelError
from lib_trainer.toolbox import duplicates as duplicates_module
from lib_trainer.toolbox import streaming
from lib_trainer.toolbox.clean_settings import CleanSettings
from lib_trainer.toolbox.desk import ToolDesk
from lib_trainer.toolbox.duplicates import models_in
from lib_trainer.toolbox.duplicates import prepare as prepare_duplicates
from lib_trainer.toolbox.facts import facts_of
from lib_trainer.toolbox.identity import components, glance, identity
from lib_trainer.toolbox.inspect import prepare as prepare_inspect
from lib_trainer.toolbox.inspect_settings import DuplicatesSettings, InspectSettings
from lib_trainer.toolbox.installed import Installed
from lib_trainer.toolbox.lora_tools import asked_report, write_report
from lib_trainer.toolbox.output import Target, make_way
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.published import PUBLISHED
from lib_trainer.toolbox.source import open_source
from lib_trainer.toolbox.spelling import ALPHAS, notes_in
from lib_trainer.toolbox.tools import TOOLS
from tests.toolbox.models import SD1, SD2, SDXL, Tensors, checkpoint, save, save_folder, some


def hashes(path: Path) -> dict[str, str]:
    source = open_source(path)
    parts = components(source, facts_of(source))
    found = {part: identity(tensors) for part, tensors in parts.items()}
    assert len({glance(tensors) for tensors in parts.values()}) == len(set(found.values()))
    return found


@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda one: one.word)
def test_a_hash_is_the_same_in_every_container(family: Family, tmp_path: Path) -> None:
    made = checkpoint(family)
    half = {name: one.half() if one.is_floating_point() else one for name, one in made.items()}
    wanted = hashes(save(tmp_path / "a.safetensors", made))
    assert wanted.keys() == {*family.parts, "vae"} and len(set(wanted.values())) == len(wanted)
    assert hashes(save(tmp_path / "b.safetensors", half)) == wanted
    torch.save({"state_dict": made, "global_step": 1}, tmp_path / "c.ckpt")
    assert hashes(tmp_path / "c.ckpt") == wanted
    folder = save_folder(tmp_path / "d", family)
    assert hashes(folder) == wanted
    assert hashes(save_folder(tmp_path / "e", family, dtype=torch.float16)) == wanted
    assert hashes(folder / "vae" / "diffusion_pytorch_model.safetensors") == {"vae": wanted["vae"]}
    assert hashes(folder / "unet" / "diffusion_pytorch_model.safetensors") == {"unet": wanted["unet"]}
    vae = {name.partition(".")[2]: one for name, one in half.items() if name.startswith("first_stage_model.")}
    torch.save(vae, tmp_path / "f.vae.pt")
    assert hashes(tmp_path / "f.vae.pt") == {"vae": wanted["vae"]}


def test_a_hash_changes_with_any_number(tmp_path: Path) -> None:
    made = some(SD1)
    wanted = hashes(save(tmp_path / "a.safetensors", made))
    name = "first_stage_model.decoder.conv_in.weight"
    made[name] = made[name].clone()
    made[name].view(-1)[-1] += 0.01
    found = hashes(save(tmp_path / "b.safetensors", made))
    assert {part for part in wanted if wanted[part] != found[part]} == {"vae"}


def test_layers_that_nothing_reads_do_not_matter(tmp_path: Path) -> None:
    """diffusers' folders of SD 2.x lack the last layer of the text encoder, and the projection behind it."""
    made = some(SD2)
    wanted = hashes(save(tmp_path / "a.safetensors", made))
    prefix = SD2.encoders[0].prefix
    more = {f"{prefix}transformer.resblocks.23.ln_1.weight": torch.ones(2), f"{prefix}text_projection": torch.ones(2)}
    more[f"{prefix}logit_scale"] = torch.tensor(1.0)
    assert hashes(save(tmp_path / "b.safetensors", made | more)) == wanted
    more = {f"{prefix}transformer.resblocks.22.ln_1.weight": torch.ones(2)}
    assert hashes(save(tmp_path / "c.safetensors", made | more)) != wanted


def look(path: Path, *, whole: bool = True) -> str:
    done = prepare_inspect(InspectSettings(file=str(path), whole=whole)).work(Progress())
    return "\n".join(str(line) for line in (done.told, *done.notes))


def test_what_is_told_of_a_checkpoint(tmp_path: Path) -> None:
    made = some(SD1) | {"model_ema.decay": torch.ones(1), "betas": torch.ones(2), "odd.thing": torch.ones(2)}
    path = save(tmp_path / "a.safetensors", made, **{"modelspec.title": "Zorb"})
    told = look(path)
    for said in ("checkpoint for SD 1.x", "It predicts epsilon.", "4 input channels", "modelspec.title: Zorb",
                 "running average (EMA, 1 tensor)", "1 tensor is not needed: betas", "not known here: odd.thing",
                 "unet: ", "te1: ", "vae: ", "Every number is one."):  # fmt: skip
        assert said in told
    assert hashes(path)["vae"][:10] in told and "hash" not in look(path, whole=False)


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    made = some(SD1)
    name, positions = "first_stage_model.decoder.conv_in.weight", next(n for n in made if n.endswith("position_ids"))
    made |= {name: torch.full((4,), float("nan")), positions: (torch.arange(77) * 0.999).half()[None]}
    told = look(save(tmp_path / "a.safetensors", made))
    assert f"1 tensor holds numbers that are none (NaN or infinite): {name}" in told
    assert f"Positions of tokens are damaged in {positions}" in told and "Every number" not in told


def test_what_is_told_of_a_lora(tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors: Tensors = {f"{key}.lora_down.weight": torch.ones(4, 8), f"{key}.lora_up.weight": torch.ones(8, 4),
                        f"{key}.dora_scale": torch.ones(8, 1)}  # fmt: skip
    tags = json.dumps({"1_a": {"zorb": 3, "blue": 1}, "2_b": {"zorb": 2}})
    path = save(tmp_path / "a.safetensors", tensors, ss_sd_model_name="base", ss_tag_frequency=tags,
                ssmd_cover_images=json.dumps(["/9j/2w=="]))  # fmt: skip
    told = look(path)
    for none in ("[]", "{broken", '"text"', '["no base64!"]', '[{"a": 1}]', "[null]", "[true]", "[" * 100_000):
        assert "brings a picture" not in look(save(tmp_path / "d.safetensors", tensors, ssmd_cover_images=none)), none
    for said in ("LoRA for SD 1.x", "Ranks: 4 (1 layer)", "DoRA", "ss_sd_model_name: base", "zorb (5), blue (1)",
                 "brings a picture"):  # fmt: skip
        assert said in told
    assert "Rank 4 in" not in told
    more = tensors | {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8),
                      "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(8, 2)}  # fmt: skip
    lines = look(save(tmp_path / "r.safetensors", more)).splitlines()
    for said in ("Ranks: 2 (1 layer), 4 (1 layer).", "Rank 2 in lora_te_text_model_encoder_layers_0_mlp_fc1.",
                 f"Rank 4 in {key}."):  # fmt: skip
        assert said in lines
    assert "holds anything" in look(save(tmp_path / "b.safetensors", {"anything": torch.ones(1)}))
    for tags in ("{broken", "[" * 100_000, '{"a": {"zorb": Infinity}}'):
        assert "LoRA" in look(save(tmp_path / "c.safetensors", tensors, ss_tag_frequency=tags)), tags[:20]


def test_json_that_is_nested_too_deeply_is_passed_by(tmp_path: Path) -> None:
    """In the metadata of files and in the descriptions of folders."""
    deep, lora = "[" * 100_000, "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"
    assert notes_in({ALPHAS: deep}) == {} == notes_in({ALPHAS: json.dumps({"x": [10**400, "F32"]})})
    assert with_ranks({"ss_network_args": deep}, {lora: torch.ones(4, 8)})["ss_network_dim"] == "4"
    folder = save_folder(tmp_path / "d", SD1)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(deep)
    assert "It predicts epsilon" in look(folder, whole=False) and not clues_of(folder).described
    (folder / "unet" / "config.json").write_text(deep)
    assert not folder_inpaints(folder) and "SD 1.x" in look(folder, whole=False), "as one without a word"


def test_a_published_vae_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its file, byte for byte; another file by having the numbers of one that is."""
    vae, half, other = models / "v.vae.safetensors", models / "below" / "half.safetensors", models / "b.safetensors"
    digest = hashlib.sha256(vae.read_bytes()).hexdigest()
    assert "published as" not in look(vae)
    monkeypatch.setitem(PUBLISHED, digest, "the VAE of Zorb")
    assert "published as the VAE of Zorb: its file is that one, byte for byte" in look(vae)
    assert "published as" not in look(vae, whole=False) and "published as" not in look(half)

    def beside(path: Path, *vaes: Path) -> str:
        settings = InspectSettings(file=str(path), vaes=tuple(map(str, vaes)))
        return "\n".join(map(str, prepare_inspect(settings).work(Progress()).notes))

    for place in (models, vae):
        assert f"The VAE is that of {vae}, published as the VAE of Zorb." in beside(half, place)
    assert "The VAE is that of" not in beside(vae, vae)
    copy = save(models / "copy.pt.safetensors", load_file(vae), note="other bytes")
    assert f"The VAE is that of {copy}." in beside(other, copy)
    changed = load_file(vae)
    changed["decoder.conv_in.bias"] = changed["decoder.conv_in.bias"] + 1
    save(copy, changed)
    assert "The VAE is that of" not in beside(other, copy)
    with pytest.raises(ConfigError, match="to compare the VAE with"):
        beside(half, models / "nowhere")
    lora = save(models / "l.pt.safetensors", {"anything": torch.ones(1)})
    assert "nowhere" not in beside(lora, models / "nowhere"), "it has none to compare"
    lora.unlink()
    [told] = [line for line in duplicates(models).splitlines() if line.startswith("The same vae")]
    assert "published as the VAE of Zorb" in told and str(other) in told and str(copy) not in told


def test_a_published_vae_in_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(tmp_path / "d", SD1)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    monkeypatch.setitem(PUBLISHED, hashlib.sha256(file.read_bytes()).hexdigest(), "the VAE of Zorb")
    assert "published as the VAE of Zorb" in look(folder) and "published as the VAE of Zorb" in look(file)


def test_published_vaes_are_told_by_whole_hashes() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in PUBLISHED)


def duplicates(folder: Path, *trash: Path) -> str:
    settings = DuplicatesSettings(folders=(str(folder),), trash=tuple(map(str, trash)))
    done = prepare_duplicates(settings).work(Progress())
    return "\n".join(str(line) for line in (done.told, *done.notes))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """a and its half are the same, b has another UNet; the VAE lies beside, too."""
    made = some(SD1)
    save(tmp_path / "a.safetensors", made)
    (tmp_path / "below").mkdir()
    half = {name: one.half() if one.is_floating_point() else one for name, one in made.items()}
    save(tmp_path / "below" / "half.safetensors", half)
    save(tmp_path / "b.safetensors", made | {n: one + 1 for n, one in made.items() if n.startswith("model.")})
    save(tmp_path / "v.vae.safetensors", {n.partition(".")[2]: one for n, one in made.items() if "first_stage" in n})
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    return tmp_path


def test_duplicates_are_listed_with_what_they_take(models: Path) -> None:
    told = duplicates(models)
    files = {name: str(models / name) for name in ("a.safetensors", "b.safetensors", "v.vae.safetensors")}
    half = str(models / "below" / "half.safetensors")
    [vae] = [line for line in told.splitlines() if line.startswith("The same vae")]
    assert all(path in vae for path in (*files.values(), half))
    [unet] = [line for line in told.splitlines() if line.startswith("The same unet")]
    assert files["a.safetensors"] in unet and half in unet and files["b.safetensors"] not in unet
    assert f"{files['a.safetensors']} holds the same as {half}" in told
    assert "torn.safetensors could not be read" in told and "5 files compared" in told


def test_only_duplicates_go_to_the_trash(models: Path) -> None:
    half, whole, other = models / "below" / "half.safetensors", models / "a.safetensors", models / "b.safetensors"
    with pytest.raises(ConfigError, match="is no duplicate"):
        duplicates(models, half, other)
    with pytest.raises(ConfigError, match="leave one of them out"):
        duplicates(models, half, whole)
    assert half.exists() and whole.exists()
    assert "is in the trash now" in duplicates(models, half)
    assert not half.exists() and len(list((models / "below" / ".trainer-trash").rglob("*.old"))) == 1
    with pytest.raises(ConfigError, match="is no folder"):
        duplicates(models / "nowhere")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says which files are mapped")
def test_no_file_is_held_open_when_it_is_moved(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Windows none could be: what is mapped there stays in its place."""
    mapped: list[str] = []
    real = duplicates_module.discard

    def discard(path: Path) -> Path:
        mapped.extend(line for line in Path("/proc/self/maps").read_text("utf-8").splitlines() if str(models) in line)
        return real(path)

    monkeypatch.setattr(duplicates_module, "discard", discard)
    assert "is in the trash now" in duplicates(models, models / "below" / "half.safetensors")
    assert mapped == []


def test_a_file_that_goes_while_others_are_read_is_told(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = models / "below" / "half.safetensors"
    real = duplicates_module._counted
    monkeypatch.setattr(duplicates_module, "_counted", lambda lists: half.unlink() or real(lists))
    assert "half.safetensors could not be read" in duplicates(models)


def test_what_is_in_the_trash_already_is_passed_by(models: Path) -> None:
    half = models / "below" / "half.safetensors"
    assert "is in the trash now" in duplicates(models, half)
    assert "is in the trash now" not in duplicates(models, half)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "disk"
    for path in (inside / "a.ckpt", inside / "b" / "b.ckpt", outside / "c.ckpt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (inside / "a disk").symlink_to(outside)
    (inside / "round").symlink_to(inside)
    (outside / "back").symlink_to(inside / "b")
    found = [path.relative_to(inside).as_posix() for path in models_in(inside)]
    assert found == ["a.ckpt", "b/b.ckpt", "a disk/c.ckpt"]


def test_a_checkpoint_s_folder_is_not_gone_through(tmp_path: Path) -> None:
    """Whatever else is kept there, and each file has one name."""
    downloads, root = tmp_path / "downloads", tmp_path / "root"
    for path in (downloads / "a.safetensors", downloads / "deep" / "b.safetensors", root / "checkpoints" / "c.ckpt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (downloads / "a.txt").touch()
    found = Installed(StandaloneHost(downloads / "a.safetensors", root).model_folders)
    assert found.names()["checkpoints"] == ["c.ckpt", "a.safetensors"]
    assert found.path("a.safetensors") == str(downloads / "a.safetensors")
    assert found.folders() == [root / "checkpoints"], "where duplicates are looked for"
    found = Installed(StandaloneHost(root / "checkpoints" / "c.ckpt", root).model_folders)
    assert found.names()["models"] == ["c.ckpt"]


def test_a_report_is_never_written_over_another_file(tmp_path: Path) -> None:
    """It has come since the name was free, and the report lies beside it."""
    taken, progress = tmp_path / "taken.csv", Progress()
    target = asked_report(str(taken), "refuse", ())
    taken.write_text("mine")
    (tmp_path / "taken-2.csv").write_text("mine, too")
    write_report(target, "its own", progress)
    assert taken.read_text() == "mine" and (tmp_path / "taken-3.csv").read_text() == "its own"
    assert "the result is called taken-3.csv" in str(progress.notes[0])


def test_what_has_cost_a_computation_is_not_lost_for_its_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file has taken it meanwhile; the host's .yaml of a third name is another model's."""
    target = models / "clean.safetensors"

    def meanwhile(one: Target) -> None:
        target.write_bytes(b"another's")
        (models / "clean-2.yaml").write_text("another model's")
        make_way(one)

    monkeypatch.setattr(streaming, "make_way", meanwhile)
    desk = ToolDesk()
    desk.start(TOOLS["clean"], CleanSettings(file=str(models / "a.safetensors"), output=str(target)))
    view = desk.wait(30)
    assert view is not None and view.state == "finished" and view.output == models / "clean-3.safetensors"
    assert target.read_bytes() == b"another's"
    assert load_file(view.output).keys() == load_file(models / "a.safetensors").keys()
    assert str(view.notes[0]) == f"{target} exists already; the result is called clean-3.safetensors."


def test_a_link_is_no_duplicate_of_what_it_leads_to(models: Path) -> None:
    """It takes no room, and would lead nowhere."""
    other = models / "b.safetensors"
    (models / "a-link.safetensors").symlink_to(other)
    os.link(other, models / "c-too.safetensors")
    (models / "torn-link.safetensors").symlink_to(models / "gone.safetensors")
    told = duplicates(models)
    assert "6 files compared" in told and "a-link" not in told and "c-too" not in told
    assert "torn-link.safetensors could not be read" in told
    with pytest.raises(ConfigError, match="is no duplicate"):
        duplicates(models, other)
    assert other.exists()


def test_from_the_command_line(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(models / "b.safetensors"), "--no-numbers"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "checkpoint for SD 1.x" in lines[0] and not set(lines) & set(err.splitlines()), "a terminal shows both"
    assert main(["model", "duplicates", str(models)]) == 0 and "holds the same as" in capsys.readouterr().out
    assert main(["model", "inspect", str(models / "torn.safetensors")]) == 2
    with pytest.raises(ModelError):
        look(models / "torn.safetensors")
