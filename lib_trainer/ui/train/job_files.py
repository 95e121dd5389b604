"""Jobs of the training form as files: exported, imported, and the one that was started last."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_trainer.config import JobConfig, dump_job, dump_values, field_specs, from_values, load_values, to_values
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, Problems
from lib_trainer.training.sizes import usual_values, with_usual
from lib_trainer.ui.kit.notices import Notices

LAST_JOB = "last.toml"


class JobFiles:
    """`folder` keeps the last started job. What the model of the host gives by itself is not written."""

    def __init__(self, folder: Path, host: Host, notices: Notices) -> None:
        self._path, self._host, self._notices = folder / LAST_JOB, host, notices

    def export(self, values: Mapping[str, Any]) -> tuple[str, str]:
        """A notice, and what the script offers for download (empty if the form cannot be exported)."""
        payload = ""

        def write() -> str:
            nonlocal payload
            job = job_of(values)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "job.toml")
                dump_job(job, path)
                payload = json.dumps({"name": f"{job.output.name or 'job'}.toml", "text": path.read_text("utf-8")})
            return ""

        return self._notices.of(write), payload

    def load(self, path: Path) -> tuple[str, dict[str, Any] | None]:
        """A notice, and the values of a job file (None if it is not one)."""
        values: dict[str, Any] | None = None

        def read() -> str:
            nonlocal values
            values = to_values(from_values(with_usual(load_values(path, called=path.name), self._host)))
            return self._notices.say(f"The form now shows {path.name}.")

        return self._notices.of(read), values

    def last_job(self) -> dict[str, Any] | None:
        """The values of the job that was started last, if its file is there and readable."""
        try:
            own = load_values(self._path)
            return to_values(from_values(with_usual(own, self._host)))
        except ConfigError:
            return None

    def keep(self, values: Mapping[str, Any]) -> None:
        """`last_job` gives these from now on."""
        with contextlib.suppress(OSError):  # the run is what matters: the form's memory is a convenience
            dump_values(self._own(values), self._path)

    def last_started(self) -> JobConfig | None:
        values = self.last_job()
        return None if values is None else from_values(values)

    def usual(self) -> dict[str, Any]:
        """What the form shows of the options whose default hangs on the model, where nobody has changed them."""
        return usual_values(self._host)

    def _own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values without the model's own: with another model they are others."""
        usual = self.usual()
        followed = usual if all(values[path] == value for path, value in usual.items()) else {}
        return {path: value for path, value in values.items() if path not in followed}


def job_of(values: Mapping[str, Any], problems: Problems | None = None) -> JobConfig:
    """The form's job, but for what is wrong in fields that are not shown: nobody could mend it, nor reads it.

    Raises `ConfigError`; with `problems` what is wrong goes there, and its options have their defaults.
    """
    specs = field_specs()

    def left_out(path: str, value: Any) -> bool:
        spec = specs.get(path)
        return bool(spec and spec.when and not spec.shown_in(values) and not spec.takes(value))

    read = {path: specs[path].default if left_out(path, value) else value for path, value in values.items()}
    return from_values(read, problems)
