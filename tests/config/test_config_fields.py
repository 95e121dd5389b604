"""What the page, the docs and the errors know of each option comes from the schema."""

from __future__ import annotations

import msgspec
import pytest

from lib_trainer.config import FieldSpec, JobConfig, field_specs, to_values

SPECS = list(field_specs().values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.path)
def test_every_option_is_described_and_its_default_is_allowed(spec: FieldSpec) -> None:
    assert spec.label
    assert spec.help.endswith((".", "?"))
    assert spec.section
    if spec.choices:
        assert spec.default in spec.choices
    if spec.kind in ("int", "float"):
        assert spec.low is not None and spec.high is not None
        assert spec.low <= spec.default <= spec.high
        assert (spec.kind == "int") == isinstance(spec.default, int)


def test_paths_are_those_of_the_job() -> None:
    built = msgspec.to_builtins(JobConfig())
    paths = [f"{section}.{name}" for section, part in built.items() if isinstance(part, dict) for name in part]
    assert paths == list(field_specs()) == list(to_values(JobConfig()))


def test_what_is_allowed_in_words() -> None:
    assert field_specs()["network.rank"].allowed.text() == "a whole number from 1 to 1024"
    assert field_specs()["optimizer.unet_lr"].allowed.text() == "a number from 0 to 1"
    assert field_specs()["training.precision"].allowed.text() == "one of auto, bf16, fp16, fp32"
    assert field_specs()["training.gradient_checkpointing"].allowed.text() == "true or false"
    assert field_specs()["dataset.folder"].allowed.text() == "a text"


def test_a_job_cannot_be_changed_after_its_check() -> None:
    with pytest.raises(AttributeError):
        JobConfig().network.rank = 3  # type: ignore[misc]


def test_sections_say_what_their_class_variables_are() -> None:
    """Python 3.10, which is the WebUI's, resolves no bare `ClassVar`, and the decoder resolves them all."""
    import re
    from pathlib import Path

    import lib_trainer.config

    for file in Path(lib_trainer.config.__file__).parent.glob("*.py"):
        assert not re.search(r":\s*ClassVar\s*=", file.read_text("utf-8")), file.name
