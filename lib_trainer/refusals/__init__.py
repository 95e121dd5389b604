"""What people are told, and why something is refused: codes and facts here, the words in a catalogue a language."""

from lib_trainer.refusals.errors import (
    ConfigError,
    DatasetError,
    JobErrors,
    MemoryExhausted,
    MemoryShort,
    ModelError,
    NameTaken,
    NumericalError,
    Problem,
    Problems,
    Reason,
    SaveError,
    TaggerError,
    TrainerError,
)
from lib_trainer.refusals.sentences import Count, Decimals, Field, Joined, Named, Sentence, few, printable

__all__ = [
    "ConfigError",
    "Count",
    "DatasetError",
    "Decimals",
    "Field",
    "JobErrors",
    "Joined",
    "MemoryExhausted",
    "MemoryShort",
    "ModelError",
    "NameTaken",
    "Named",
    "NumericalError",
    "Problem",
    "Problems",
    "Reason",
    "SaveError",
    "Sentence",
    "TaggerError",
    "TrainerError",
    "few",
    "printable",
]
