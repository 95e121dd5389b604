"""Errors meant for the user's eyes: each message is one sentence that names the field or file and the remedy."""

from __future__ import annotations

from pathlib import Path


class TrainerError(Exception):
    """Something the user can mend. `str(error)` is the sentence that is shown.

    `kept` is the file that holds the last good weights, where a run had any.
    """

    kept: Path | None = None


class ConfigError(TrainerError):
    """A field of a job is missing, unknown or out of range. Raised before any model is touched."""


class DatasetError(TrainerError):
    """The folder of pictures cannot be used."""


class ModelError(TrainerError):
    """No model is loaded, or it cannot be trained as it is."""


class TaggerError(TrainerError):
    """A tagger's folder, a download or the cache of scores cannot be used."""


class SaveError(TrainerError):
    """A file could not be written; the last good file is untouched."""


class NumericalError(TrainerError):
    """The loss is no longer a finite number."""


class MemoryExhausted(TrainerError):
    """The device ran out of memory; the message says what to lower."""
