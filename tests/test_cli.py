"""The command line: exit codes, sentences, the progress bar, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from lib_trainer import __version__
from lib_trainer.cli import main as cli
from lib_trainer.config import FieldSpec, JobConfig, dump_job, field_specs, from_values, to_values, typed_values
from lib_trainer.options.document import options_text
from lib_trainer.ports import Host
from lib_trainer.refusals import DatasetError, SaveError, Sentence
from lib_trainer.training import desk as training_desk
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.finder import Report, told
from lib_trainer.training.rate_answer import Range, Tried
from lib_trainer.training.run import Plan
from lib_trainer.work import events as ev
from lib_trainer.work.control import Control
from miniature.export import checkpoint_of
from tests.ui.fakes import FakeHost

ROOT = Path(__file__).parents[1]
Body = Callable[[Control, ev.Listener], None]
JOB = from_values({"output.name": "cat", "dataset.folder": "/pictures"})


def desk(body: Body, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrainingDesk:
    """A desk whose runs are `body`."""
    monkeypatch.setattr(training_desk, "prepare", lambda job, host: SimpleNamespace(job=job, warnings=()))

    def run_plan(plan: Plan, host: Host, control: Control, emit: ev.Listener) -> None:
        body(control, emit)

    monkeypatch.setattr(training_desk, "run_plan", run_plan)
    return TrainingDesk(FakeHost(tmp_path))  # type: ignore[arg-type]


def step(number: int, total: int, loss: float = 0.125) -> ev.StepDone:
    return ev.StepDone(number, total, 1, loss, {"unet": 1e-4}, 1.0, 0.01, 1 << 30)


def test_a_run_that_finishes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(control: Control, emit: ev.Listener) -> None:
        emit(ev.Phase("Waiting for the queue"))
        emit(ev.Message("Skipped broken.png: the file is empty", "warning"))
        for done in range(3):
            emit(ev.Phase("Caching latents", done + 1, 3))
        emit(ev.Started(4, 1234567, {"unet": 192, "te1": 72}))
        for number in range(1, 5):
            emit(step(number, 4))
        emit(ev.PreviewMade(4, Image.new("RGB", (8, 8)), "a cat"))
        emit(ev.Saved(2, Path("/lora/cat-step00000002.safetensors"), False))
        emit(ev.Finished(4, FakeHost(tmp_path).lora_folder() / "cat.safetensors", False))

    assert cli.train(JOB, desk(body, monkeypatch, tmp_path)) == cli.DONE
    out, err = capsys.readouterr()
    assert re.search(r"Finished after 4 steps in \d+ s: .*cat\.safetensors\n.*<lora:cat:1>", out)
    for text in (
        "warning: Skipped broken.png: the file is empty",
        "Caching latents: 100%",
        "Training 1,234,567 parameters in adapters: 192 in unet, 72 in te1",
        "Training: 100%",
        "4/4",
        "loss=0.1250, epoch=1",
        "Step 4: drew a preview of 'a cat'",
        "Step 2: saved",
    ):
        assert text in err


@pytest.mark.parametrize("kept", [None, Path("/lora/cat-step00000002.safetensors")])
def test_a_run_that_fails_says_what_is_kept(
    kept: Path | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(control: Control, emit: ev.Listener) -> None:
        emit(step(1, 4))
        error = SaveError("The disk is full: make room.")
        error.kept = kept
        raise error

    assert cli.train(JOB, desk(body, monkeypatch, tmp_path)) == cli.FAILED
    err = capsys.readouterr().err
    assert "error: The disk is full: make room.\n" in err
    assert ("The last good weights are in" in err) == (kept is not None)
    assert "Traceback" not in err


def test_a_job_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[network]\nrank = 0\n", encoding="utf-8")
    assert cli.main(["train", str(path)]) == cli.BAD_JOB
    out, err = capsys.readouterr()
    assert err == f"error: network.rank = 0 in {path} is not allowed: it must be a whole number from 1 to 1024.\n"
    assert out == ""


def test_a_job_whose_pictures_are_missing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what can be told of its checkpoint without loading it is told with that."""
    dump_job(from_values({"output.name": "cat", "dataset.folder": "gone"}), tmp_path / "job.toml")
    expected = f"error: The folder of pictures '{tmp_path / 'gone'}' does not exist: check its path.\n"
    no_model = tmp_path / "some.safetensors"
    no_model.write_bytes(b"no model")
    for checkpoint, more in ((checkpoint_of("sd1"), ""), (no_model, f"error: {no_model} is not a readable")):
        arguments = ["train", str(tmp_path / "job.toml"), "--root", str(tmp_path / "out")]
        assert cli.main([*arguments, "--checkpoint", str(checkpoint)]) == cli.BAD_JOB
        told = capsys.readouterr().err
        assert told.endswith(expected) and told.startswith(more or expected)
    assert not (tmp_path / "out").exists()


def test_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump_job(JOB, tmp_path / "job.toml")
    assert cli.main(["train", str(tmp_path / "job.toml"), "--root", str(tmp_path)]) == cli.BAD_JOB
    assert "No checkpoint is given" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to itself")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_stops_and_keeps(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def body(control: Control, emit: ev.Listener) -> None:
        emit(step(1, 100))
        os.kill(os.getpid(), number)
        wait_until(lambda: control.stopping)
        emit(ev.Finished(1, Path("/lora/cat.safetensors"), True))

    assert cli.train(JOB, desk(body, monkeypatch, tmp_path)) == cli.DONE
    out, err = capsys.readouterr()
    assert "Stopped after 1 step in" in out
    assert "Press Ctrl-C again to give it up" in err
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to itself")
def test_the_second_interrupt_gives_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    over = threading.Event()

    def body(control: Control, emit: ev.Listener) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: control.stopping)
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(20)  # a step that does not end

    with pytest.raises(KeyboardInterrupt):
        cli.train(JOB, desk(body, monkeypatch, tmp_path))
    over.set()


def test_stopped_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(control: Control, emit: ev.Listener) -> None:
        emit(ev.Finished(0, None, True))

    assert cli.train(JOB, desk(body, monkeypatch, tmp_path)) == cli.DONE
    assert "nothing was saved" in capsys.readouterr().out


def test_a_learning_rate_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of what was tried, the answer, and what to set."""
    rates = {"optimizer.unet_lr": 1e-4, "optimizer.text_encoder_lr": 1e-5}
    tried = (Tried(1.0, 24, 0.125, 0.01), Tried(10.0, 24, None))
    report = Report(rates, 400, tried, Range(0.5, 1.234, 3.0, 0.91), notes=(Sentence("finder.none_held", least=8),))

    def search(plan: Plan, host: Host, control: Control, emit: ev.Listener) -> None:
        assert plan.job.optimizer.unet_lr == 1e-4
        emit(ev.Phase("Trying learning rates", 0, 2, "runs"))
        emit(ev.Found(report))
        emit(ev.Finished(told=told(report), notes=report.notes))

    monkeypatch.setattr(training_desk, "search", search)
    monkeypatch.setattr(training_desk, "prepare_search", lambda job, host: SimpleNamespace(job=job))
    dump_job(JOB, tmp_path / "job.toml")
    monkeypatch.setattr(TrainingDesk, "__init__", _on_a_fake(TrainingDesk.__init__, tmp_path))
    assert cli.main(["find-rate", str(tmp_path / "job.toml"), "--set", "optimizer.unet_lr=1e-4"]) == cli.DONE
    told_of, err = capsys.readouterr()
    assert "fewer than 8" not in err, "a terminal shows both"
    assert "+12.5% ± 1.0%" in told_of and "overflowed" in told_of and "fewer than 8" in told_of
    assert "optimizer.unet_lr: between 5e-5 and 3e-4, about 1.2e-4; 91%" in told_of
    assert "optimizer.unet_lr = 0.00012\noptimizer.text_encoder_lr = 1.2e-05\n" in told_of


def _on_a_fake(made: Callable[..., None], folder: Path) -> Callable[..., None]:
    """A desk's constructor, on a host without a model."""
    return lambda self, host: made(self, FakeHost(folder))


def test_a_refusal_at_the_start_reaches_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = desk(lambda control, emit: None, monkeypatch, tmp_path)

    def refuse(job: JobConfig, host: Host) -> Plan:
        raise DatasetError("No pictures.")

    monkeypatch.setattr(training_desk, "prepare", refuse)
    with pytest.raises(DatasetError):
        cli.train(JOB, made)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_relative_paths_are_meant_from_the_job_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = from_values({"dataset.folder": "pictures", "output.folder": "../out", "model.checkpoint": "~/model"})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    resolved = from_values(cli.resolve_paths(to_values(job), tmp_path))
    assert resolved.dataset.folder == str(tmp_path / "pictures")
    assert resolved.output.folder == str(tmp_path / "../out")
    assert resolved.model.checkpoint == str(tmp_path / "home" / "model")
    assert replace_paths(resolved) == replace_paths(job), "nothing else changes"


def replace_paths(job: JobConfig) -> list[object]:
    specs = [spec for spec in field_specs().values() if not spec.is_path]
    return [getattr(getattr(job, section), name) for section, name in (spec.path.split(".") for spec in specs)]


def test_absolute_and_empty_paths_stay(tmp_path: Path) -> None:
    absolute = str(tmp_path / "pictures")
    job = from_values({"dataset.folder": absolute})
    assert cli.resolve_paths(to_values(job), Path("elsewhere")) == to_values(job)


def test_options_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["options"]) == cli.DONE
    out = capsys.readouterr().out
    assert out == options_text(field_specs())
    for spec in field_specs().values():
        assert spec.path in out
        assert str(spec.allowed) in out
    assert "network.rank = 32    (a whole number from 1 to 1024)" in out


def test_serve_refuses_a_checkpoint_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--checkpoint", str(tmp_path / "gone")]) == cli.BAD_JOB
    assert "gone does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.5", "::", "my-machine"])
def test_serve_refuses_other_machines_without_a_password(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINER_PASSWORD", raising=False)
    assert cli.main(["serve", "--host", host]) == cli.BAD_JOB
    assert f"--host {host} lets other machines" in capsys.readouterr().err


def test_everything_that_is_wrong_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[network]\nrank = 0\n[training]\nseed = -1\n", encoding="utf-8")
    assert cli.main(["train", str(path)]) == cli.BAD_JOB
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in lines] == ["error: network.rank", "error: training.seed"]
    dump_job(from_values({"dataset.width": 100}), path)
    assert cli.main(["train", str(path), "--root", str(tmp_path)]) == cli.BAD_JOB
    told = capsys.readouterr().err
    for part in ("output.name is empty", "dataset.width = 100", "No checkpoint is given", "No folder of pictures"):
        assert part in told


def test_a_defect_is_logged_and_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(specs: object) -> str:
        raise RuntimeError("oh\x1b[31m no")

    monkeypatch.setattr(cli, "options_text", broken)
    assert cli.main(["options"]) == cli.FAILED
    assert capsys.readouterr().err == "error: Unexpected: RuntimeError: oh\\x1b[31m no\n"
    assert "Traceback" in caplog.text


def test_no_control_character_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\tb.toml" if os.name != "nt" else "a.toml"
    assert cli.main(["train", str(tmp_path / name)]) == cli.BAD_JOB
    err = capsys.readouterr().err
    assert "There is no job file" in err and "\x1b" not in err and "\t" not in err


def test_a_plain_question_needs_no_heavy_package() -> None:
    code = (
        "import sys\nfrom lib_trainer.cli.main import main\nmain(['options'])\n"
        "print([name for name in ('torch', 'diffusers', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_runs() -> None:
    command = [sys.executable, "-m", "lib_trainer", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_signs_that_the_output_has_no_letter_for_are_printed_as_escapes() -> None:
    """Windows' own encodings, where the output goes to a file or another program."""
    command = [sys.executable, "-m", "lib_trainer", "options"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert rb"alpha / \u221arank" in done.stdout and not done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a pipe that nobody reads is another error there")
def test_output_that_nobody_reads_any_more_is_no_defect() -> None:
    command = [sys.executable, "-m", "lib_trainer", "options", "--markdown"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == cli.FAILED


def test_a_template_is_a_path_beside_the_job_file_or_a_name(tmp_path: Path) -> None:
    named = {"dataset.template": "subject.txt"}
    assert cli.resolve_paths(named, tmp_path) == named
    (tmp_path / "subject.txt").write_text("[name]")
    assert cli.resolve_paths(named, tmp_path) == {"dataset.template": str(tmp_path / "subject.txt")}


def test_presets_and_single_options_are_put_over_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs_of: list[JobConfig] = []
    monkeypatch.setattr(cli, "train", lambda job, desk: jobs_of.append(job) or cli.DONE)
    (tmp_path / "presets").mkdir()
    job, first, second = tmp_path / "job.toml", tmp_path / "presets" / "one.toml", tmp_path / "two.toml"
    job.write_text("network = {rank = 64, alpha = 8}\ndataset.folder = 'mine'\n", encoding="utf-8")
    first.write_text("network.rank = 4\ndataset.folder = 'theirs'\n", encoding="utf-8")
    second.write_text("network.rank = 5\n", encoding="utf-8")
    more = ["--preset", str(first), "--preset", str(second), "--set", "network.dora=yes", "--set", "output.name=a=b"]
    assert cli.main(["train", str(job), *more]) == cli.DONE
    (made,) = jobs_of
    assert (made.network.rank, made.network.alpha, made.network.dora, made.output.name) == (5, 8.0, True, "a=b")
    assert made.dataset.folder == str(tmp_path / "presets" / "theirs"), "as seen from the preset"


@pytest.mark.parametrize(
    ("family", "text", "size"),
    [
        ("sd1", "", (512, 512)),
        ("sdxl", "", (1024, 1024)),
        ("sdxl", "dataset = {width = 512, height = 768}", (512, 768)),
        ("sdxl", "dataset.width = 768", (768, 512)),
        ("sdxl", "dataset.height = 768", (512, 768)),
        ("", "", (512, 512)),
    ],
)
def test_a_job_without_a_size_has_the_checkpoints_own(
    family: str, text: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the page; one side alone is beside the other's default."""
    jobs_of: list[JobConfig] = []
    monkeypatch.setattr(cli, "train", lambda job, desk: jobs_of.append(job) or cli.DONE)
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    checkpoint = ["--checkpoint", str(checkpoint_of(family))] if family else []
    assert cli.main(["train", str(tmp_path / "job.toml"), *checkpoint]) == cli.DONE
    (made,) = jobs_of
    assert (made.dataset.width, made.dataset.height) == size


@pytest.mark.parametrize(("more", "size"), [([], 1024), (["--size", "64"], 64)])
def test_the_generate_tab_starts_at_the_checkpoints_own_size(
    more: list[str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def build_app(*_: object, size: int, **__: object) -> None:
        sizes.append(size)
        raise DatasetError("No page.")

    page = SimpleNamespace(build_app=build_app, serve=None)
    monkeypatch.setitem(sys.modules, "lib_trainer.ui.standalone", page)
    monkeypatch.setattr(training_desk, "process_desk", lambda make: None)
    monkeypatch.setattr("lib_trainer.toolbox.desk.process_desk", lambda: None)
    monkeypatch.setattr(cli.cli_tag, "make_desk", lambda root: None)
    root = ["--root", str(tmp_path)]
    assert cli.main(["serve", "--checkpoint", str(checkpoint_of("sdxl")), *root, *more]) == cli.BAD_JOB
    assert sizes == [size]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("network.rank=0", "network.rank = 0 in the job is not allowed: it must be a whole number from 1 to 1024."),
        ("network.rank=x", "network.rank = 'x' in the job is not allowed"),
        ("network.dora=perhaps", "network.dora = 'perhaps' in the job is not allowed: it must be true or false."),
        ("network.sort=1", "'network.sort=1' sets no option: write it as network.rank=16"),
        ("network.rank", "'network.rank' sets no option"),
    ],
)
def test_a_single_option_that_is_none_is_refused(
    text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text("", encoding="utf-8")
    assert cli.main(["train", str(tmp_path / "job.toml"), "--set", text]) == cli.BAD_JOB
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("spec", field_specs().values(), ids=lambda spec: spec.path)
def test_every_option_can_be_set_by_its_text(spec: FieldSpec) -> None:
    """What a job file would write, and what the list of options shows, is understood."""
    other = next((one for one in reversed(spec.choices)), spec.default)
    text = str(other).lower() if isinstance(other, bool) else str(other)
    values = typed_values([f"{spec.path}={text}"])
    assert values == {spec.path: other} and type(values[spec.path]) is type(other)
