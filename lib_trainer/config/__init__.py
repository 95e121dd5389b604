"""The job: one frozen struct per concept, declared once; form, job file, command line and docs are derived from it."""

from lib_trainer.config.captions import CaptionsConfig
from lib_trainer.config.fields import FieldSpec, field_specs
from lib_trainer.config.files import (
    differing,
    dump_job,
    dump_values,
    from_values,
    load_job,
    load_values,
    to_values,
    typed_values,
)
from lib_trainer.config.masks import MasksConfig
from lib_trainer.config.network import NetworkConfig
from lib_trainer.config.objective import LossConfig, NoiseConfig
from lib_trainer.config.optimizer import OptimizerConfig
from lib_trainer.config.schema import DatasetConfig, JobConfig, ModelConfig, OutputConfig, TrainingConfig
from lib_trainer.config.validation import ValidationConfig

__all__ = [
    "CaptionsConfig",
    "DatasetConfig",
    "FieldSpec",
    "JobConfig",
    "LossConfig",
    "MasksConfig",
    "ModelConfig",
    "NetworkConfig",
    "NoiseConfig",
    "OptimizerConfig",
    "OutputConfig",
    "TrainingConfig",
    "ValidationConfig",
    "differing",
    "dump_job",
    "dump_values",
    "field_specs",
    "from_values",
    "load_job",
    "load_values",
    "to_values",
    "typed_values",
]
