"""What all tools stand on: files read tensor by tensor, written whole or not at all, and the desk that runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
import struct
from pathlib import Path
from typing import Annotated, Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from lib_trainer.cli.main import main
from lib_trainer.networks.formats import description
from lib_trainer.networks.formats.tensor_file import write_tensors
from lib_trainer.options.declare import option
from lib_trainer.refusals import ConfigError, ModelError, NameTaken, SaveError, Sentence
from lib_trainer.toolbox import desk as desks
from lib_trainer.toolbox import tools
from lib_trainer.toolbox.desk import Done, Prepared, Tool, ToolDesk
from lib_trainer.toolbox.lora_tools import write_report
from lib_trainer.toolbox.output import Target, describe_result, settle, stored_as
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.source import open_source
from lib_trainer.toolbox.streaming import Tally, write_stream
from lib_trainer.toolbox.writes import Writes
from lib_trainer.training.names import LONGEST
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from tests import protocol

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "brain": torch.randn(5).bfloat16(),
    "whole": torch.randn(3, 4),
    "count": torch.tensor(7, dtype=torch.int64),
    "none": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
}
LAYOUT = {name: (tuple(one.shape), one.dtype) for name, one in TENSORS.items()}


def test_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, {"a": "é"})
    source = open_source(path)
    assert source.metadata == {"a": "é"} and source.shapes == {name: tuple(one.shape) for name, one in TENSORS.items()}
    assert all(
        torch.equal(source.raw(name), one) and source.tensors[name].dtype is one.dtype for name, one in TENSORS.items()
    )
    source.number("whole").zero_()
    assert torch.equal(source.raw("whole"), TENSORS["whole"])


def with_header(path: Path, header: object, data: bytes = b"") -> Path:
    told = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + data)
    return path


def test_loose_metadata_and_odd_places_are_read(tmp_path: Path) -> None:
    header = {"__metadata__": {"n": 3, "l": [1]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}}
    source = open_source(with_header(tmp_path / "x.safetensors", header, b"\0" + struct.pack("<f", 2.5)))
    assert source.metadata == {"n": "3", "l": "[1]"} and source.raw("a").item() == 2.5


@pytest.mark.parametrize(
    "told, said",
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "ends before its tensors do"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "a tensor has no size"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "a tensor has no shape"),
        ({"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}, "is of type F4"),
        (["dtype"], "is not a readable"),
    ],
)
def test_a_damaged_header_is_refused(told: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        open_source(with_header(tmp_path / "x.safetensors", {"a": told}, b"1234"))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    for length in (0, 5, 30, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ModelError, match=r"x\.safetensors"):
            open_source(path)
    with pytest.raises(ModelError, match="There is no file"):
        open_source(tmp_path / "y.safetensors")


def test_pickles_are_read_out_of_what_they_are_nested_in_and_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    old = "cond_stage_model.transformer.encoder.a"
    torch.save({"state_dict": {old: torch.ones(2)}, "optimizer_states": [1]}, path)
    source = open_source(path)
    today = "cond_stage_model.transformer.text_model.encoder.a"
    assert list(source.tensors) == [today] and source.renamed == {today: old}
    assert source.outside == ("optimizer_states", "state_dict")
    torch.save({"string_to_param": {"*": torch.ones(2, 3)}}, path)
    assert open_source(path).shapes == {"string_to_param.*": (2, 3)}
    torch.save({"a": main}, path)
    with pytest.raises(ModelError, match="it holds code"):
        open_source(path)


def write(target: Target, **more: Any) -> Path:
    return write_stream(target, LAYOUT, TENSORS.__getitem__, {"a": "b"}, Progress(), **more)


def test_the_stream_is_the_file_that_is_written_at_once(tmp_path: Path) -> None:
    write(Target(tmp_path / "x.safetensors"))
    write_tensors(tmp_path / "y.safetensors", TENSORS, {"a": "b"}, overwrite=False)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_what_is_known_at_the_end_stands_in_the_header(tmp_path: Path) -> None:
    path = write(Target(tmp_path / "x.safetensors"), closing=lambda: {"c": "é" * 100})
    with safetensors.safe_open(str(path), framework="pt") as file:
        assert file.metadata() == {"a": "b", "c": "é" * 100}
    assert all(torch.equal(one, TENSORS[name]) for name, one in load_file(path).items())


def test_numbers_beyond_fp16_are_counted_and_become_its_largest(tmp_path: Path) -> None:
    numbers = torch.tensor([1.0, 1e5, -1e6, 1e-9])
    tally = Tally()
    layout = {"a": ((4,), torch.float16)}
    path = write_stream(
        Target(tmp_path / "x.safetensors"), layout, lambda name: (numbers[:2], numbers[2:]), {}, Progress(), tally=tally
    )
    assert load_file(path)["a"].tolist() == [1.0, 65504.0, -65504.0, 0.0]
    assert (tally.clamped, tally.names) == (2, ["a"])


def test_numbers_that_fit_stay_however_many_are_large(tmp_path: Path) -> None:
    """The sum of their squares, which is looked at first, is beyond what one of them may be."""
    made = {"half": torch.full((9,), 65504.0), "brain": torch.full((9,), 3e38), "whole": torch.full((9,), 3e38)}
    types = {"half": torch.float16, "brain": torch.bfloat16, "whole": torch.float32}
    layout = {name: ((9,), dtype) for name, dtype in types.items()}
    tally = Tally()
    path = write_stream(Target(tmp_path / "x.safetensors"), layout, made.__getitem__, {}, Progress(), tally=tally)
    found = load_file(path)
    assert all(torch.equal(found[name], made[name].to(types[name])) for name in made) and tally.clamped == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused_and_nothing_is_written(bad: float, tmp_path: Path) -> None:
    layout = {"a": ((2,), torch.float32)}
    with pytest.raises(ModelError, match=r"^a would hold numbers that are none"):
        write_stream(Target(tmp_path / "x.safetensors"), layout, lambda name: torch.tensor([1, bad]), {}, Progress())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_said_before(tmp_path: Path) -> None:
    layout = {"a": ((1 << 50,), torch.float32)}
    with pytest.raises(SaveError, match="needs 4,294,967,296 MB"):
        write_stream(Target(tmp_path / "new" / "x.safetensors"), layout, lambda name: 1 / 0, {}, Progress())
    assert list(tmp_path.iterdir()) == []


def test_where_the_result_goes(tmp_path: Path) -> None:
    there = tmp_path / "a.safetensors"
    assert settle(f'"{tmp_path}/a"', "refuse", []).path == there
    there.write_bytes(b"mine")
    with pytest.raises(NameTaken, match=r"a\.safetensors exists already.*a-2\.safetensors is free"):
        settle(str(there), "refuse", [])
    numbered = settle(str(there), "number", [])
    assert numbered.path.name == "a-2.safetensors" and "a-2" in str(numbered.notes[0])
    write(settle(str(there), "replace", []))
    assert load_file(there).keys() == TENSORS.keys()
    assert [path.read_bytes() for path in (tmp_path / ".trainer-trash").rglob("*.old")] == [b"mine"]
    with pytest.raises(ConfigError, match="one of the files that are read"):
        settle(str(there), "replace", [there])
    with pytest.raises(ConfigError, match=r"a\.safetensors is no folder"):
        settle(str(there / "deep" / "b"), "refuse", [])
    with pytest.raises(ConfigError, match="No file is named"):
        settle(" ", "refuse", [])
    with pytest.raises(ConfigError, match="is a folder"):
        settle(f"{tmp_path}/models/", "refuse", [])


def test_a_result_gets_its_own_yaml_and_takes_nobody_s(tmp_path: Path) -> None:
    """A .yaml that lies there is another model's word on the result, and maybe on a file that stays."""
    model, there = tmp_path / "base.safetensors", tmp_path / "a.safetensors"
    yaml, trash = there.with_suffix(".yaml"), tmp_path / ".trainer-trash"
    yaml.write_text("v")
    for existing in ("refuse", "replace"):
        with pytest.raises(ConfigError, match=r"a\.yaml lies there and would describe the result"):
            settle(str(there), existing, [model], base=model)
    assert settle(str(there), "number", [model], base=model).path.name == "a-2.safetensors"
    assert settle(str(there), "refuse", [model]).path == there, "a LoRA has none"
    model.with_suffix(".yaml").write_text("v")
    assert settle(str(there), "refuse", [model], base=model).path == there, "it says the same"

    model.with_suffix(".yaml").write_text("epsilon")
    there.write_bytes(b"mine")
    write(settle(str(there), "replace", [model], base=model))
    assert not yaml.exists() and {path.name for path in trash.rglob("*.old")} == {"a.safetensors.old", "a.yaml.old"}
    yaml.write_text("v")
    (tmp_path / "A.CKPT").write_bytes(b"another")
    with pytest.raises(ConfigError, match="lies there"):
        settle(str(there), "replace", [model], base=model)
    own = settle(str(tmp_path / "a.safetensors"), "replace", [tmp_path / "A.CKPT"], base=tmp_path / "a.ckpt")
    assert own.replace and own.yaml is None, "it is the base's own"
    assert yaml.exists()


def test_a_result_whose_yaml_cannot_be_written_is_there_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, result = tmp_path / "base.safetensors", tmp_path / "a.safetensors"
    base.with_suffix(".yaml").write_text("v")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(description, "write_atomically", full)
    progress = Progress(Control(), lambda event: None)
    describe_result(progress, base, result)
    (told,) = map(str, progress.notes)
    assert f"{result} is saved, but not" in told and f"copy {base.with_suffix('.yaml')}" in told


@pytest.mark.parametrize("gone", ["a.yaml", "a.safetensors"])
def test_what_is_replaced_may_be_gone_at_the_end(gone: str, tmp_path: Path) -> None:
    """The result is finished by then, and the other's .yaml must not describe it."""
    there = tmp_path / "a.safetensors"
    there.write_bytes(b"mine")
    there.with_suffix(".yaml").write_text("v")
    target = settle(str(there), "replace", [], base=tmp_path / "base.safetensors")
    (tmp_path / gone).unlink()
    write(target)
    assert load_file(there).keys() == TENSORS.keys() and not there.with_suffix(".yaml").exists()
    left = {"a.yaml", "a.safetensors"} - {gone}
    assert {path.stem for path in (tmp_path / ".trainer-trash").rglob("*.old")} == left
    assert "a.yaml goes to the trash with the file that is replaced" in str(target.notes[0])


def test_a_link_that_leads_nowhere_is_replaced(tmp_path: Path) -> None:
    for ending in (".safetensors", ".csv"):
        link = tmp_path / f"a{ending}"
        link.symlink_to(tmp_path / "gone")
        target = settle(str(link), "replace", [], ending)
        write(target) if ending != ".csv" else write_report(target, "its own", Progress())
        assert link.is_file() and not link.is_symlink()


def test_a_drive_that_is_away_is_no_place_for_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows not even the root of a path has to be there."""
    with monkeypatch.context() as away:
        away.setattr(os.path, "lexists", lambda path: False)
        away.setattr(Path, "is_dir", lambda path: False)
        with pytest.raises(ConfigError, match="is no folder; choose another place") as caught:
            settle(str(tmp_path / "x"), "refuse", [])
    assert caught.value.field == "output"


def test_what_is_replaced_stays_where_the_new_file_fails(tmp_path: Path) -> None:
    there = tmp_path / "a.safetensors"
    there.write_bytes(b"mine")
    with pytest.raises(ZeroDivisionError):
        write_stream(settle(str(there), "replace", []), LAYOUT, lambda name: 1 / 0, {}, Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"] and there.read_bytes() == b"mine"


def test_a_link_that_is_replaced_takes_nothing_of_what_it_leads_to(tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "a.safetensors", tmp_path / "a.safetensors"
    real.parent.mkdir()
    real.write_bytes(b"mine")
    link.symlink_to(real)
    assert write(settle(str(link), "replace", [])) == link
    assert real.read_bytes() == b"mine" and load_file(link).keys() == TENSORS.keys() and not link.is_symlink()
    assert [path.is_symlink() for path in (tmp_path / ".trainer-trash").rglob("*.old")] == [True]


@pytest.mark.parametrize("name", ["a:b", "con", "x" * 230, "x" * 300, "ü" * 130, ".a", "a\nb", "a*"])
@pytest.mark.parametrize("existing", ["refuse", "number", "replace"])
def test_a_result_is_called_as_every_system_can_call_a_file(existing: str, name: str, tmp_path: Path) -> None:
    """Found before the work: the name of a file is looked at by the system when all is computed."""
    with contextlib.suppress(OSError):
        (tmp_path / f"{name}.safetensors").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="cannot be the name of a file on every system") as caught:
        settle(str(tmp_path / name), existing, [])
    assert caught.value.field == "output"


def test_the_longest_name_is_written_numbered_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * LONGEST}.safetensors"
    for existing in ("refuse", "number", "replace"):
        write(settle(str(path), existing, []))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert [len(old.name) for old in (tmp_path / ".trainer-trash").rglob("*.old")] == [LONGEST + 16]


def test_precision_is_of_floating_point_numbers() -> None:
    assert stored_as(torch.float32, "fp16") is torch.float16 and stored_as(torch.int64, "fp16") is torch.int64
    assert stored_as(torch.bfloat16, "keep") is torch.bfloat16


class Settings(Writes, frozen=True):
    """A tool of this test"""

    input: Annotated[str, option("File", "What is read.", place="path")] = ""
    times: Annotated[float, option("Factor", "What numbers are multiplied by.", low=0, high=9)] = 1.0


def prepared(settings: Settings) -> Prepared:
    source = open_source(Path(settings.input))
    target = settle(settings.output, settings.existing, [source.path])
    layout = {name: (one.shape, one.dtype) for name, one in source.tensors.items()}

    def work(progress: Progress) -> Done:
        progress.begin(Sentence("phase.reading"), sum(one.nbytes for one in source.tensors.values()), "bytes")
        path = write_stream(target, layout, lambda name: source.number(name) * settings.times, {}, progress)
        return Done(Sentence("toolbox.numbered", path=path, name="x"), path)

    return Prepared((Sentence("toolbox.numbered", path=target.path, name="dry"),), work)


TOOL = Tool("scale", "multiply", Settings, prepared, ("input",))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(4), "b": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    return tmp_path


def test_the_desk_runs_a_tool_by_the_protocol(given: Path) -> None:
    desk, events = ToolDesk(), list[ev.Event]()
    settings = TOOL.made({"input": str(given / "a.safetensors"), "output": str(given / "b"), "times": 3.0})
    assert "dry" in str(desk.look(TOOL, settings)[0]) and len(list(given.iterdir())) == 1
    desk.start(TOOL, settings, events.append)
    view = desk.wait(60)
    protocol.check(events, training=False)
    assert view is not None and view.state == "finished" and view.output == given / "b.safetensors"
    assert load_file(given / "b.safetensors")["a"].tolist() == [3.0] * 4
    with pytest.raises(NameTaken):
        desk.start(TOOL, settings)


def test_a_stopped_tool_leaves_nothing(given: Path) -> None:
    desk, events = ToolDesk(), list[ev.Event]()
    settings = TOOL.made({"input": str(given / "a.safetensors"), "output": str(given / "b")})

    def stop_at_once(event: ev.Event) -> None:
        events.append(event)
        if isinstance(event, ev.Phase):
            desk.stop()

    desk.start(TOOL, settings, stop_at_once)
    view = desk.wait(60)
    protocol.check(events, training=False)
    assert view is not None and view.state == "stopped" and [path.name for path in given.iterdir()] == ["a.safetensors"]


def test_the_command_line_is_made_of_the_table(
    given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tools.TOOLS, "scale", TOOL)
    command = ["model", "scale", str(given / "a.safetensors"), "--output", str(given / "b"), "--times", "2"]
    assert main([*command, "--dry-run"]) == 0 and "dry" in capsys.readouterr().out
    assert len(list(given.iterdir())) == 1
    assert main(command) == 0 and "b.safetensors" in capsys.readouterr().out
    assert load_file(given / "b.safetensors")["b"].tolist() == [[2.0, 2.0]] * 2
    assert main(command) == 2 and "exists already" in capsys.readouterr().err
    assert main([*command, "--times", "10"]) == 2 and "--times = 10.0 is not allowed" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to itself")
def test_an_interrupt_while_files_are_checked_ends_the_command(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no job yet that could be stopped, and the one to come must not run on."""

    def interrupted(settings: Settings) -> Prepared:
        os.kill(os.getpid(), signal.SIGINT)
        return prepared(settings)

    monkeypatch.setitem(tools.TOOLS, "scale", dataclasses.replace(TOOL, prepare=interrupted))
    assert main(["model", "scale", str(given / "a.safetensors"), "--output", str(given / "b")]) == 130
    assert [path.name for path in given.iterdir()] == ["a.safetensors"]


def test_the_process_has_one_desk() -> None:
    assert desks.process_desk() is desks.process_desk()
