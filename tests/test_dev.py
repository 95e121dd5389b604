"""The README's two commands begin with whatever `python3` a machine has."""

from __future__ import annotations

import http.server
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="stand-ins for programs are shell scripts here")


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dev.py as it is started by a Python 3.13, on a machine where nothing else is found."""
    spec = importlib.util.spec_from_file_location("dev_under_test", ROOT / "dev.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FETCHED", tmp_path / "clone" / ".python")
    monkeypatch.setattr(sys, "executable", str(python(tmp_path / "this" / "python3", "3.13")))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return module


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def python(path: Path, version: str, lacks: str = "nothing") -> Path:
    """A stand-in for an interpreter that is asked for its version and for modules that it must have."""
    return program(path, f'case "$*" in *{lacks}*) exit 1;; esac\necho {version}')


@pytest.mark.parametrize(
    "place",
    ["path/python3.11", "path/python3.10", "pyenv/versions/3.10.13/bin/python3", "uv/cpython-3.11.9-linux/bin/python3"],
)
def test_another_python_is_found_and_told(
    dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    version = "3.10" if "3.10" in place else "3.11"
    found = python(tmp_path / place, version)
    assert dev.find_python() == [str(found)]
    told = capsys.readouterr().out
    assert "no wheels for Python" in told and str(found) in told and version in told


def test_a_shim_of_a_python_that_is_not_chosen_is_passed_by(dev: ModuleType, tmp_path: Path) -> None:
    """pyenv puts a `python3.11` on the PATH that ends with an error unless that version is switched on."""
    program(tmp_path / "path" / "python3.11", 'echo "pyenv: python3.11: command not found" >&2; exit 127')
    python(tmp_path / "pyenv/versions/3.11.0/bin/python3", "3.11", lacks="ensurepip")  # as Debian parts it off
    good = python(tmp_path / "pyenv/versions/3.10.2/bin/python3", "3.10")
    assert dev.find_python() == [str(good)]


def test_the_python_that_was_started_is_taken_where_it_will_do(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python(tmp_path / "path" / "python3.11", "3.11")
    own = python(tmp_path / "own" / "python3", "3.10")
    monkeypatch.setattr(sys, "executable", str(own))
    assert dev.find_python() == [str(own)]
    assert capsys.readouterr().out == ""


def test_uv_fetches_one_where_none_is_installed(dev: ModuleType, tmp_path: Path) -> None:
    fetched = python(tmp_path / "fetched", "3.11")
    asked = 'test "$1 $2 $3 $4" = "python install 3.11 --install-dir" || exit 9'
    place = '"$5/cpython-3.11.15/bin"'
    program(tmp_path / "path" / "uv", f"{asked}\n/bin/mkdir -p {place}; /bin/cp {fetched} {place}/python3")
    assert dev.find_python() == [str(tmp_path / "clone" / ".python" / "cpython-3.11.15" / "bin" / "python3")]


def test_uv_itself_comes_from_the_package_index(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip is asked for the pinned uv, and what it brings is called."""
    uv = program(tmp_path / "brought", 'echo "error: no network" >&2; exit 2')
    target = tmp_path / "clone" / ".python" / "tools"
    asked = f'*"pip install"*"--target {target} {dev.UV}"'
    pip = f'case "$*" in {asked}) /bin/mkdir -p {target}/bin; /bin/cp {uv} {target}/bin/uv;; esac'
    monkeypatch.setattr(sys, "executable", str(program(tmp_path / "this" / "python3", f"{pip}\necho 3.13")))
    with pytest.raises(dev.StepFailed, match=r"Python 3\.11 or 3\.10 is needed.*could not fetch one.*no network"):
        dev.find_python()


@pytest.fixture
def index(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package index that can be reached."""

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/cpu"
        monkeypatch.setattr(dev, "CPU_TORCH", address)
        yield address
        server.shutdown()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere pip's usual torch has no CUDA")
def test_torch_without_cuda_is_chosen_where_no_card_is(
    dev: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dev, "has_nvidia_card", lambda: False)
    pinned = next(
        line.split()[0] for line in (ROOT / "requirements/runtime.txt").read_text().splitlines() if "torch==" in line
    )
    assert dev.torch_without_cuda() == ["--no-deps", "--index-url", index, pinned]
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://own.example")
    assert dev.torch_without_cuda() == []
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL")
    monkeypatch.setattr(dev, "CPU_TORCH", f"{index}/elsewhere")
    assert dev.torch_without_cuda() == []


def test_a_card_keeps_its_torch(dev: ModuleType, index: str, tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "exit 0")
    assert dev.torch_without_cuda() == []


@pytest.mark.parametrize("fails", ["ruff check", "ruff format", "mypy", "pytest", "nothing"])
def test_all_checks_are_run_and_what_failed_is_named(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: str
) -> None:
    script = f'echo "$*" >> "{tmp_path}/asked"; echo "said by $2"; case "$*" in "-m {fails}"*) exit 1;; esac'
    monkeypatch.setattr(dev, "PYTHON", program(tmp_path / "venv" / "python", script))
    monkeypatch.setattr(dev, "set_up", lambda *_: None)
    assert dev.main(["test", "-k", "some"]) == (fails != "nothing")
    asked = (tmp_path / "asked").read_text("utf-8").splitlines()
    assert sorted(line.split()[1] for line in asked) == ["mypy", "pytest", "ruff", "ruff"]
    assert next(line for line in asked if "pytest" in line).endswith("-k some")
    out, err = capfd.readouterr()
    name = {"ruff check": "lint", "ruff format": "format", "mypy": "types", "pytest": "tests"}.get(fails, "")
    assert (f"failed: {name} " in err) if name else not err
    assert out.count("FAILED") == bool(name) and out.count(": ok") == 4 - bool(name)
    assert out.index("said by pytest") < out.index("== types: mypy\nsaid by mypy\n== types:")


def test_what_is_compiled_is_kept_whatever_the_shell_says(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else hundreds of processes of a test run compile the same modules. The libraries report and fetch nothing."""
    monkeypatch.setattr(dev, "PYTHON", program(tmp_path / "venv" / "python", "env"))
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert dev.run("-m", "anything", miniature=True) == 0
    told = dict(line.split("=", 1) for line in capfd.readouterr().out.splitlines() if "=" in line)
    assert not {"PYTHONDONTWRITEBYTECODE", "PYTHONHOME"} & told.keys()
    assert told["OMP_NUM_THREADS"] == told["HF_HUB_OFFLINE"] == told["PYTHONUTF8"] == "1"
