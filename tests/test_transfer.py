"""What a device is asked about the numbers it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lib_trainer import transfer
from lib_trainer.transfer import widest_float
from tests.without_fp64 import WithoutFp64

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    widest_float.cache_clear()
    yield
    widest_float.cache_clear()


def test_the_widest_numbers_of_a_device() -> None:
    assert widest_float(CPU) is torch.float64
    widest_float.cache_clear()
    with WithoutFp64():
        assert widest_float(CPU) is torch.float32


def test_as_apples_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*_: object, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "ones", ones)
    assert widest_float(CPU) is torch.float32


def test_a_full_device_has_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(transfer.torch, "ones", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            widest_float(CPU)
    assert widest_float(CPU) is torch.float64
