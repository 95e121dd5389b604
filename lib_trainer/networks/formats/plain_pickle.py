"""Files of `torch.save` that hold tensors and plain containers. Nothing else in a pickle is ever executed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from lib_trainer.errors import ModelError


def read_plain(path: Path) -> dict[Any, Any]:
    """The dictionary of a .pt file, on the CPU. Raises `ModelError` for anything that is not tensors and plain values.

    torch's own restricted unpickler does it: a class or function that is not on its short list ends the reading.
    """
    try:
        data = torch.load(str(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}: check the name.") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(
            f"{path} is not a file of tensors and plain values ({reason}): it was not read any further, take another."
        ) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no dictionary of tensors: choose another file.")
    return data


def to_pickle(data: dict[Any, Any]) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()
