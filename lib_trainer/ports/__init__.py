"""What the core needs from a host, and nothing more, as Protocols.

A host is the WebUI (`host/webui`) or diffusers (`host/standalone`). The core sees a loaded model only through these.
"""

from lib_trainer.ports.folders import Folders
from lib_trainer.ports.host import Host, Models
from lib_trainer.ports.model import (
    AdaptableModule,
    Exchange,
    Group,
    HeldModel,
    HeldPart,
    LoadedModel,
    NoiseSchedule,
    OwnParameter,
    TrainingState,
)
from lib_trainer.ports.previews import PreviewRequest, Previews
from lib_trainer.ports.process import Lease, Process
from lib_trainer.ports.text import Conditioning, PictureSize, Rows, TokenTable, Wording

__all__ = [
    "AdaptableModule",
    "Conditioning",
    "Exchange",
    "Folders",
    "Group",
    "HeldModel",
    "HeldPart",
    "Host",
    "Lease",
    "LoadedModel",
    "Models",
    "NoiseSchedule",
    "OwnParameter",
    "PictureSize",
    "PreviewRequest",
    "Previews",
    "Process",
    "Rows",
    "TokenTable",
    "TrainingState",
    "Wording",
]
