"""The WebUI's packages are never changed: what is installed is decided by what is there."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lib_trainer.install_plan import Machine, Step, constraints, cuda_of, normalised, plan
from lib_trainer.installed import cuda_version, installed_packages

ROOT = Path(__file__).parents[1]
WEBUI = {"torch": "2.1.2+cu121", "numpy": "1.26.2", "protobuf": "3.20.0", "gradio": "3.41.2", "psutil": "5.9.5"}


def actions(**changes: Any) -> dict[str, str]:
    machine = {"installed": WEBUI, "python": (3, 10), "cuda": "12.1", **changes}
    return {step.package.name: step.action for step in plan(Machine(**machine))}


def test_a_plain_webui_gets_what_it_lacks() -> None:
    assert actions() == {
        "msgspec": "install", "tomli_w": "install", "tomli": "install", "psutil": "keep", "onnxruntime": "install",
        "bitsandbytes": "install",
    }  # fmt: skip


def test_a_second_start_installs_nothing() -> None:
    there = {**WEBUI, "msgspec": "0.19.0", "tomli-w": "1.2.0", "tomli": "2.0.1", "bitsandbytes": "0.45.5"}
    there["onnxruntime"] = "1.23.2"
    assert set(actions(installed=there).values()) == {"keep"}


def test_python_3_11_reads_toml_itself() -> None:
    assert "tomli" not in actions(python=(3, 11))


def test_torch_is_never_asked_for() -> None:
    steps = plan(Machine({}, (3, 10), None))
    assert not any("torch" in step.package.requirement for step in steps)


@pytest.mark.parametrize(
    ("torch", "cuda", "action"),
    [
        ("2.1.2+cu121", "12.1", "install"),
        ("2.5.1+cu124", "12.4", "install"),
        ("2.1.2", "12.1", "install"),
        ("2.0.1+cu118", "11.8", "skip"),
        ("2.6.0+cu124", "12.4", "skip"),
        ("2.10.0+cu130", "13.0", "skip"),
        ("2.1.2+cpu", None, "skip"),
        ("2.1.2+rocm5.6", None, "skip"),
        (None, None, "skip"),
    ],
)
def test_bitsandbytes_only_beside_a_torch_that_it_fits(torch: str | None, cuda: str | None, action: str) -> None:
    installed = {key: value for key, value in {**WEBUI, "torch": torch}.items() if value is not None}
    assert actions(installed=installed, cuda=cuda)["bitsandbytes"] == action


@pytest.mark.parametrize(
    "build",
    ["onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm",
     "onnxruntime-training", "ort-nightly-gpu"],
)  # fmt: skip
def test_an_onnxruntime_of_any_build_is_never_installed_over(build: str) -> None:
    for version in ("1.23.2", "1.8.0", "2.0.0"):
        assert actions(installed={**WEBUI, build: version})["onnxruntime"] in ("keep", "skip")


def test_what_only_sounds_like_onnxruntime_does_not_bring_it() -> None:
    for name in ("onnx", "onnxruntime-extensions", "onnxruntime-genai-cuda"):
        assert actions(installed={**WEBUI, name: "1.0"})["onnxruntime"] == "install"


def test_the_build_that_is_there_is_named() -> None:
    steps = plan(Machine({**WEBUI, "onnxruntime-gpu": "1.17.1"}, (3, 10), "12.1"))
    assert "onnxruntime: onnxruntime-gpu 1.17.1 is there" in [step.line for step in steps]


def test_a_bitsandbytes_that_is_there_stays_whatever_torch_is() -> None:
    there = {**WEBUI, "torch": "2.6.0+cu124", "bitsandbytes": "0.46.0"}
    assert actions(installed=there)["bitsandbytes"] == "keep"


def test_a_package_that_is_too_old_is_left_alone_and_told() -> None:
    step = plan(Machine({"msgspec": "0.9.1"}, (3, 11), None))[0]
    assert step.action == "skip"
    assert step.line == "msgspec: 0.9.1 is older than 0.18, but the host's packages are left alone"


def test_every_step_has_one_line() -> None:
    for installed in ({}, WEBUI):
        for step in plan(Machine(installed, (3, 10), "12.1")):
            assert step.line.startswith(f"{step.package.name}: ")
            assert "\n" not in step.line


def test_constraints_hold_everything_and_drop_what_pip_cannot_read() -> None:
    text = constraints({**WEBUI, "clip": "1.0", "odd": "unknown", "odder": "1.0-custom build", "rc": "2.0rc1"})
    assert text.splitlines() == [
        "clip==1.0", "gradio==3.41.2", "numpy==1.26.2", "protobuf==3.20.0", "psutil==5.9.5", "rc==2.0rc1",
        "torch==2.1.2+cu121",
    ]  # fmt: skip


def test_names_are_compared_as_the_index_does() -> None:
    assert normalised("Tomli_W") == normalised("tomli.w") == "tomli-w"


def test_cuda_of_a_version_file() -> None:
    cuda = "__version__ = '2.1.2+cu121'\ncuda: Optional[str] = '12.1'\nhip: Optional[str] = None\n"
    assert cuda_of(cuda) == "12.1"
    assert cuda_of("__version__ = '2.1.2'\ncuda: Optional[str] = None\nhip: Optional[str] = '5.6'\n") is None


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trainer_install", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps() -> list[Step]:
    return plan(Machine(WEBUI, (3, 10), "12.1"))


def test_pip_is_called_under_constraints_of_what_is_there(
    installer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def pip(arguments: list[str], what: str) -> None:
        calls.append((arguments, Path(arguments[-1]).read_text(encoding="utf-8")))

    installer.install(steps(), WEBUI, pip)
    assert [call[0][1] for call in calls] == [
        "msgspec>=0.18.6,<1", "tomli_w>=1.0,<2", "tomli>=2.0,<3", "onnxruntime>=1.17.1,<1.24", "bitsandbytes==0.45.5"
    ]  # fmt: skip
    assert {call[1] for call in calls} == {constraints(WEBUI)}
    assert len(capsys.readouterr().out.splitlines()) == 6, "one line a package"


def test_a_package_that_cannot_be_had_does_not_stop_the_rest(
    installer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def pip(arguments: list[str], what: str) -> None:
        raise RuntimeError("Couldn't install\nERROR: no matching distribution")

    installer.install(steps(), WEBUI, pip)
    out = capsys.readouterr().out
    assert "error: msgspec could not be installed (ERROR: no matching distribution)" in out
    assert "warning: bitsandbytes could not be installed" in out


def test_skip_install_is_honoured(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(arguments: str, what: str) -> None:
        raise AssertionError("pip was called")

    launch = SimpleNamespace(run_pip=never, args=SimpleNamespace(skip_install=True))
    monkeypatch.setitem(sys.modules, "launch", launch)  # type: ignore[arg-type]
    installer.main()
    assert capsys.readouterr().out == "Trainer: nothing is installed, because of --skip-install\n"


def test_the_webuis_own_pip_is_used(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[str, str]] = []
    run_pip = lambda line, what: lines.append((line, what))  # noqa: E731
    launch = SimpleNamespace(run_pip=run_pip, args=SimpleNamespace(skip_install=False))
    monkeypatch.setitem(sys.modules, "launch", launch)  # type: ignore[arg-type]
    pip, skip = installer.launcher()
    pip(["install", "a>=1,<2", "--constraint", '/tmp/$HOME `x` "y"/c.txt'], "a for Trainer")
    assert not skip and lines[0][1] == "a for Trainer"
    if os.name != "nt":
        assert shlex.split(lines[0][0]) == ["install", "a>=1,<2", "--constraint", '/tmp/$HOME `x` "y"/c.txt']


def test_plain_pip_goes_through_no_shell(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], dict[str, object]]] = []
    monkeypatch.setattr(installer.subprocess, "run", lambda command, **options: calls.append((command, options)))
    monkeypatch.setitem(sys.modules, "launch", None)  # type: ignore[arg-type]
    pip, _ = installer.launcher()
    pip(["install", "a>=1", "--constraint", "/tmp/$(touch x)/c"], "a")
    command, options = calls[0]
    assert command == [sys.executable, "-m", "pip", "install", "a>=1", "--constraint", "/tmp/$(touch x)/c",
                       "--prefer-binary"]  # fmt: skip
    assert not options.get("shell")


def test_this_python_is_read_without_importing_torch() -> None:
    installed = installed_packages()
    assert installed["msgspec"]
    assert "torch" in installed
    import torch

    assert cuda_version() == torch.version.cuda


def test_what_pip_left_behind_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name, version in (
        ("~umpy-1.25.0", "numpy", "1.25.0"), ("numpy-1.26.2", "numpy", "1.26.2"), ("~ip-1", "pip", "1"),
        ("-orch-1", "torch", "1"), ("odd-1", "-odd", "1"),
    ):  # fmt: skip
        place = tmp_path / f"{folder}.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = installed_packages()
    assert found == {"numpy": "1.26.2", "-odd": "1"} and constraints(found) == "numpy==1.26.2\n"


def test_preload_adds_the_folder_of_data() -> None:
    spec = importlib.util.spec_from_file_location("trainer_preload", ROOT / "preload.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = argparse.ArgumentParser()
    module.preload(parser)
    assert parser.parse_args([]).trainer_data_dir is None
    assert parser.parse_args(["--trainer-data-dir", "/data/t"]).trainer_data_dir == "/data/t"
