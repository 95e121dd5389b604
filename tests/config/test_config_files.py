"""Job files: round trips, and one sentence for each mistake."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_trainer.config import (
    FieldSpec,
    JobConfig,
    differing,
    dump_job,
    field_specs,
    files,
    from_values,
    load_job,
    load_values,
    to_values,
)
from lib_trainer.refusals import ConfigError, JobErrors, printable

NUMBERS = [spec for spec in field_specs().values() if spec.kind in ("int", "float")]
CHOICES = [spec for spec in field_specs().values() if spec.kind == "choice"]


def name_of(spec: FieldSpec) -> str:
    return spec.path


def values_of(spec: FieldSpec) -> st.SearchStrategy[Any]:
    if spec.kind == "choice":
        return st.sampled_from(spec.choices)
    if spec.kind == "bool":
        return st.booleans()
    if spec.kind == "str":
        texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
        if spec.file_name:  # one form of letters that look the same
            texts = texts.map(lambda text: unicodedata.normalize("NFC", text))
        return texts.filter(lambda text: not spec.is_path or text == printable(text))
    assert spec.low is not None and spec.high is not None
    if spec.kind == "int":
        return st.integers(int(spec.low), int(spec.high))
    return st.floats(spec.low, spec.high)


def sentence(text: str, tmp_path: Path) -> str:
    """What a job file with this text is refused with, the file's path shortened to its name."""
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    return str(caught.value).replace(str(path), "job.toml")


@given(st.fixed_dictionaries({spec.path: values_of(spec) for spec in field_specs().values()}))
def test_every_job_survives_its_values_and_its_file(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    job = from_values(values)
    assert to_values(job) == values
    path = tmp_path_factory.mktemp("job") / "job.toml"
    dump_job(job, path)
    assert load_job(path) == job


def test_an_empty_file_is_the_default_job(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"")
    assert load_job(path) == JobConfig()


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b'\xef\xbb\xbfversion = 1\r\n[output]\r\nname = "\xe7\x8c\xab"\r\n')
    assert load_job(path).output.name == "猫"


TEXT = '[dataset]\nfolder = "猫"\n[output]\nname = "b"\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_in_every_windows_editors_encoding_is_read(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert (load_job(path).dataset.folder, load_job(path).output.name) == ("猫", "b")


def test_utf_16_without_its_mark_and_half_a_character_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    for data in (TEXT.encode("utf-16-le"), b"\xff\xfea", TEXT.encode("utf-8")[:23], b"\x00\x01", b"\xff" * 9):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"job\.toml is not "):
            load_job(path)


WINDOWS = ["C:\\Users\\me\\pics", "C:\\train\\new", "D:\\bilder\\foto\\", "C:\\pics\\", "\\\\server\\share", "C:\\x41"]
ESCAPED = [("dataset", "folder"), ("network", "continue_from"), ("output", "folder"), ("dataset", "template")]


@pytest.mark.parametrize("value", WINDOWS)
@pytest.mark.parametrize(("section", "key"), ESCAPED)
def test_a_windows_path_in_double_quotes_is_one_sentence(section: str, key: str, value: str, tmp_path: Path) -> None:
    text = f'[{section}]\n# where\n{key} = "{value}"\n'
    try:
        job = load_job_of(text, tmp_path)
    except ConfigError as error:
        said = str(error)
        assert "single quotes" in said and "'/'" in said and key in said, said
        assert said == printable(said) and "\n" not in said
    else:  # "\\\\server\\share" is an escaped backslash and an escape that TOML does not know, or it is right
        assert getattr(getattr(job, section), key) == value


@pytest.mark.parametrize("value", WINDOWS)
def test_a_windows_path_in_single_quotes_or_with_slashes_is_read(value: str, tmp_path: Path) -> None:
    assert load_job_of(f"[dataset]\nfolder = '{value}'", tmp_path).dataset.folder == value
    slashes = value.replace("\\", "/")
    assert load_job_of(f'[dataset]\nfolder = "{slashes}"', tmp_path).dataset.folder == slashes


def load_job_of(text: str, tmp_path: Path) -> JobConfig:
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    return load_job(path)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[network]\nrank = -4\nrnak = 1\n[optimizer]\nunet_lr = nan\n[dataset]\nwidth = 'x'\n")
    with pytest.raises(JobErrors) as caught:
        load_job(path)
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == ["dataset.width", "network.rank", "network.rnak", "optimizer.unet_lr"]
    assert len(str(caught.value).splitlines()) == 4
    with pytest.raises(JobErrors) as caught:
        from_values({"network.rank": -4, "dataset.width": None, "training.seed": 1.5})
    assert [p.field for p in caught.value.problems] == ["dataset.width", "network.rank", "training.seed"]


def test_brackets_in_brackets_and_numbers_without_end_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    for text in ("a = " + "[" * 100_000, "a = " + "9" * 10_000, "[network]\nrank = " + "9" * 400):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"job\.toml"):
            load_job(path)


@pytest.mark.parametrize(
    ("section", "line", "said", "allowed"),
    [
        ("network", "rank = 0", "rank = 0", "a whole number from 1 to 1024"),
        ("network", "rank = 1.5", "rank = 1.5", "a whole number from 1 to 1024"),
        ("network", "rank = true", "rank = True", "a whole number from 1 to 1024"),
        ("network", "alpha = '8'", "alpha = '8'", "a number from 0 to 4096"),
        ("optimizer", "unet_lr = nan", "unet_lr = nan", "a number from 0 to 1"),
        ("optimizer", "unet_lr = inf", "unet_lr = inf", "a number from 0 to 1"),
        ("optimizer", "name = 'SGD'", "name = 'SGD'", "one of " + ", ".join(field_specs()["optimizer.name"].choices)),
        ("training", "max_tokens = 80", "max_tokens = 80", "one of 75, 150, 225"),
        ("training", "gradient_checkpointing = 1", "gradient_checkpointing = 1", "true or false"),
        ("output", "name = 3", "name = 3", "a text"),
    ],
)
def test_a_value_that_is_not_allowed(section: str, line: str, said: str, allowed: str, tmp_path: Path) -> None:
    expected = f"{section}.{said} in job.toml is not allowed: it must be {allowed}."
    assert sentence(f"[{section}]\n{line}", tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[network]\nrnak = 4", "network.rnak in job.toml is not an option: remove it or correct its name."),
        ("[netwrok]\nrank = 4", "netwrok in job.toml is not an option: remove it or correct its name."),
        ("network = 3", "network in job.toml is not as expected: Expected `object`, got `int`."),
        ("version = 4", "version = 4 in job.toml is not known: this trainer reads up to 3, update it."),
        ("version = 0", "version = 0 in job.toml is not known: this trainer reads up to 3, update it."),
        ("version = '1'", "version = '1' in job.toml is not known: this trainer reads up to 3, update it."),
    ],
)
def test_each_other_mistake_is_one_sentence(text: str, expected: str, tmp_path: Path) -> None:
    assert sentence(text, tmp_path) == expected


def test_what_is_not_toml(tmp_path: Path) -> None:
    assert re.fullmatch(r"job.toml is not a TOML file: .*\.", sentence("rank: 4", tmp_path))
    path = tmp_path / "latin.toml"
    path.write_bytes("[output]\nname = 'é'".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml is not text in UTF-8 or UTF-16: save it as UTF-8\."):
        load_job(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no job file .*gone\.toml: check the path\."):
        load_job(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=r"The job file .* cannot be read: "):
        load_job(tmp_path)


@pytest.mark.parametrize("spec", NUMBERS, ids=name_of)
def test_the_bounds_are_allowed_and_what_lies_beyond_is_not(spec: FieldSpec) -> None:
    assert spec.low is not None and spec.high is not None
    for value in (spec.low, spec.high):
        assert to_values(from_values({spec.path: value}))[spec.path] == value
    step = 1 if spec.kind == "int" else 1e-6
    for value in (spec.low - step, spec.high + step):
        with pytest.raises(ConfigError, match=f"{re.escape(spec.path)} = .* in the job is not allowed: "):
            from_values({spec.path: value})


@pytest.mark.parametrize("spec", NUMBERS, ids=name_of)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(spec: FieldSpec, value: float) -> None:
    with pytest.raises(ConfigError, match=re.escape(spec.path)):
        from_values({spec.path: value})


@pytest.mark.parametrize("spec", CHOICES, ids=name_of)
def test_choices_are_those_listed(spec: FieldSpec) -> None:
    for choice in spec.choices:
        assert to_values(from_values({spec.path: choice}))[spec.path] == choice
    with pytest.raises(ConfigError, match=re.escape(f"it must be {spec.allowed}.")):
        from_values({spec.path: "none of these"})


def test_a_forms_whole_numbers_come_as_floats() -> None:
    job = from_values({"network.rank": 8.0, "training.max_tokens": 150.0, "network.alpha": 4})
    assert (job.network.rank, job.training.max_tokens, job.network.alpha) == (8, 150, 4.0)
    with pytest.raises(ConfigError, match=r"network\.rank = 8\.5"):
        from_values({"network.rank": 8.5})


def test_an_emptied_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"network\.rank is empty: it must be a whole number from 1 to 1024\."):
        from_values({"network.rank": None})


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"network\.drop_out in the job is not an option"):
        from_values({"network.drop_out": 0.1})


def test_an_old_file_passes_through_every_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    def second(data: dict[str, Any]) -> dict[str, Any]:
        network = dict(data["network"])
        network["dim"] = network.pop("size")
        return {**data, "network": network}

    def third(data: dict[str, Any]) -> dict[str, Any]:
        network = dict(data["network"])
        network["rank"] = network.pop("dim")
        return {**data, "network": network}

    monkeypatch.setattr(files, "MIGRATIONS", {1: second, 2: third})
    old = {"version": 1, "network": {"size": 7}}
    assert files.from_mapping(old).network.rank == 7
    assert old == {"version": 1, "network": {"size": 7}}, "migrations leave what they are given alone"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"schedule": "constant_with_warmup", "warmup_steps": 30}, {"schedule": "constant", "warmup": 30.0}),
        ({"schedule": "constant_with_warmup"}, {"schedule": "constant", "warmup": 100.0}),
        ({"schedule": "cosine", "warmup_steps": 100}, {"schedule": "cosine", "warmup": 0.0}),
        ({"warmup_steps": 100, "unet_lr": 0.5}, {"schedule": "cosine", "warmup": 0.0, "unet_lr": 0.5}),
    ],
)
def test_a_warm_up_of_version_1(old: dict[str, Any], new: dict[str, Any]) -> None:
    """One schedule alone read it, and its steps stood in every file."""
    job = files.from_mapping({"version": 1, "optimizer": old})
    assert {name: getattr(job.optimizer, name) for name in new} == new and job.version == files.CURRENT_VERSION


@pytest.mark.parametrize(
    ("kind", "expected"), [("checkpoint", (True, 0.75)), ("lora", (False, 0.9995)), (None, (True, 0.75))]
)
def test_an_average_of_version_1(kind: str | None, expected: tuple[bool, float]) -> None:
    """Whole checkpoints alone read it; a preset that names no kind may be one for them."""
    old: dict[str, Any] = {"version": 1, "finetune": {"ema": True, "ema_decay": 0.75, "unet_lr": 0.5}}
    job = files.from_mapping(old | ({"network": {"kind": kind}} if kind else {}))
    assert (job.optimizer.ema, job.optimizer.ema_decay) == expected and job.finetune.unet_lr == 0.5


def test_every_older_version_has_a_migration() -> None:
    assert sorted(files.MIGRATIONS) == list(range(1, files.CURRENT_VERSION))


def test_a_preset_says_something_of_some_options_alone(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text("version = 1\nnetwork = {rank = 4, alpha = 2}\ntraining.seed = 9\n", encoding="utf-8")
    values = load_values(path)
    assert values == {"network.rank": 4, "network.alpha": 2.0, "training.seed": 9}
    job = from_values({"network.rank": 64, "output.name": "cat"})
    over = from_values(values, over=job)
    assert (over.network.rank, over.network.alpha, over.training.seed, over.output.name) == (4, 2.0, 9, "cat")
    assert from_values({}, over=job) == job


def test_what_differs_from_a_job_is_saved_and_gives_the_job_back(tmp_path: Path) -> None:
    base = from_values({"network.rank": 64, "output.name": "cat"})
    job = from_values({"network.rank": 64, "output.name": "dog", "preview.prompt": "a dog"})
    assert differing(job, base) == {"output.name": "dog", "preview.prompt": "a dog"}
    dump_job(job, tmp_path / "preset.toml", beside=base)
    assert load_values(tmp_path / "preset.toml") == differing(job, base)
    assert from_values(load_values(tmp_path / "preset.toml"), over=base) == job
    dump_job(base, tmp_path / "same.toml", beside=base)
    assert load_values(tmp_path / "same.toml") == {}


def test_a_preset_is_checked_as_a_job_is(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    path.write_text("network.rank = 0\ntraining.sead = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_values(path)
    assert {problem.field for problem in caught.value.problems} == {"network.rank", "training.sead"}
    assert str(path) in str(caught.value)
