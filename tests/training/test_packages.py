"""Packages of optimizers: installed on demand, under the host's pins, as a job of the one runner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from lib_trainer.cli import main as cli
from lib_trainer.config import JobConfig, from_values
from lib_trainer.families.known import FAMILIES
from lib_trainer.install_plan import PYTORCH_OPTIMIZER, Machine, constraints
from lib_trainer.installed import installed_packages
from lib_trainer.kinds.registry import kind_of
from lib_trainer.refusals import ConfigError, TrainerError
from lib_trainer.training import optimizers, packages
from lib_trainer.training.checks import check_rates
from lib_trainer.work.runner import Runner
from tests import protocol


def test_pip_is_asked_under_constraints_of_everything_that_is_there() -> None:
    asked: list[Sequence[str]] = []
    held: list[str] = []

    def pip(arguments: Sequence[str]) -> None:
        asked.append(arguments)
        held.append(Path(arguments[3]).read_text(encoding="utf-8"))

    packages.install(PYTORCH_OPTIMIZER, pip)
    assert asked[0][:3] == ["install", PYTORCH_OPTIMIZER.requirement, "--constraint"]
    assert held == [constraints(installed_packages())] and f"torch=={version('torch')}\n" in held[0]


def test_what_pip_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself, with an index that is not there."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    gone = packages.Package("no-such-thing", "no-such-thing>=1", (1,), "is not there")
    with pytest.raises(TrainerError, match=r"no-such-thing could not be installed beside what is there .*ERROR"):
        packages.install(gone)


def test_bitsandbytes_only_beside_a_torch_that_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "this_machine", lambda: Machine({"torch": "2.9.0"}, (3, 11), "12.8"))
    with pytest.raises(ConfigError, match="bitsandbytes is not installed, because no version is known to work"):
        packages.install(packages.package_of("AdamW8bit"), lambda arguments: None)


def test_it_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(packages, "_pip", lambda arguments: asked.append(arguments[1]))
    runner, events = Runner(), []  # type: ignore[var-annotated]
    view = packages.start_install(runner, "Prodigy", events.append).wait(30)
    assert (view.state, view.kind, asked) == ("finished", "install", [PYTORCH_OPTIMIZER.requirement])
    protocol.check(events, training=False)

    def broken(arguments: Sequence[str]) -> None:
        raise ChildProcessError("ERROR: no matching distribution")

    monkeypatch.setattr(packages, "_pip", broken)
    view = packages.start_install(runner, "Prodigy").wait(30)
    assert view.state == "failed" and "no matching distribution" in view.error


def test_the_command_line_installs_and_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(packages, "_pip", lambda arguments: asked.append(arguments[1]))
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["install-optimizer", "Prodigy"]) == cli.DONE
    assert asked == [PYTORCH_OPTIMIZER.requirement]
    assert capsys.readouterr().out == "pytorch-optimizer is installed.\n"
    assert cli.main(["install-optimizer", "AdamW"]) == cli.BAD_JOB
    assert "AdamW is none of the optimizers that need a package: those are AdamW8bit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "optimizer.unet_lr = 0.0001: Prodigy finds the rate itself"),
        ({"optimizer.unet_lr": 1.0}, "optimizer.text_encoder_lr is not what optimizer.unet_lr is"),
        ({"optimizer.unet_lr": 1.0, "optimizer.text_encoder_lr": 0.0}, ""),
        ({"optimizer.unet_lr": 1.0, "optimizer.text_encoder_lr": 1.0}, ""),
        (
            {"optimizer.unet_lr": 1.0, "optimizer.text_encoder_lr": 1.0, "blocks.rates": "middle=0.5"},
            "blocks.rates: Prodigy finds one rate for all blocks",
        ),
        (
            {"optimizer.unet_lr": 1.0, "optimizer.text_encoder_lr": 1.0, "optimizer.lora_plus": 16.0},
            "optimizer.lora_plus: Prodigy finds one rate for all matrices",
        ),
        (
            {"optimizer.unet_lr": 1.0, "optimizer.text_encoder_lr": 1.0, "network.kind": "pivotal"},
            "embedding.learning_rate is not what optimizer.unet_lr is",
        ),
        ({"network.kind": "hypernetwork"}, "hypernetwork.learning_rate = 1e-05: Prodigy finds"),
        ({"network.kind": "hypernetwork", "hypernetwork.learning_rate": 1.0}, ""),
        ({"optimizer.unet_lr": 1.0, "optimizer.name": "ProdigyPlusScheduleFree"}, ""),
        ({"optimizer.name": "AdamW"}, ""),
    ],
)
def test_rates_that_are_no_factors_on_a_found_one(changes: dict[str, object], told: str) -> None:
    job: JobConfig = from_values({"optimizer.name": "Prodigy", **changes})
    if not told:
        check_rates(job, kind_of(job), FAMILIES[0])
        return
    with pytest.raises(ConfigError) as refused:
        check_rates(job, kind_of(job), FAMILIES[0])
    assert told in str(refused.value)


def test_a_second_text_encoder_has_the_one_rate_too() -> None:
    """Where the family has one: others pay no heed to its option."""
    ones = {"optimizer.unet_lr": 1.0, "optimizer.text_encoder_lr": 1.0}
    job = from_values({"optimizer.name": "Prodigy", **ones, "optimizer.text_encoder_2_lr": 0.1})
    sd1, _, sdxl = FAMILIES
    check_rates(job, kind_of(job), sd1)
    with pytest.raises(ConfigError, match=r"optimizer\.text_encoder_2_lr is not what optimizer\.unet_lr is"):
        check_rates(job, kind_of(job), sdxl)


@pytest.mark.skipif(os.name == "nt", reason="a script stands for Python")
def test_what_pip_says_need_not_be_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_bytes(b"#!/bin/sh\necho $1 $2 $3\nprintf 'first\\nERROR: no \\377 space\\nlast\\n' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(packages.sys, "executable", str(script))
    with pytest.raises(ChildProcessError, match="no \ufffd space"):
        packages._pip(["install", "x"])
