"""The attention in the middle: one head over every pixel of the smallest map.

Four-dimensional tensors reach torch's fused kernels (Dao et al. 2022, arXiv:2205.14135; Rabe & Staats 2021,
arXiv:2112.05682); the three-dimensional ones that ldm and the WebUI pass build a matrix of n² numbers.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.nn import functional as F

from lib_trainer.memory import is_out_of_memory

MATRIX_BYTES = 256 << 20
"""What the rows of the attention matrix of one chunk may take where no fused kernel is at hand."""


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, upcast: bool = False) -> torch.Tensor:
    """Exact attention of (B, m, C) over (B, n, C) → (B, m, C); `upcast` computes in fp32 as the WebUI's option does."""
    dtype = query.dtype
    if upcast:
        query, key, value = query.float(), key.float(), value.float()
    query, key, value = (one.unsqueeze(1) for one in (query, key, value))
    if query.device.type == "cuda":
        try:
            with fused_kernels_only():
                return F.scaled_dot_product_attention(query, key, value).squeeze(1).to(dtype)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
    return chunked(query, key, value).squeeze(1).to(dtype)


def chunked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, limit: int = MATRIX_BYTES) -> torch.Tensor:
    """Attention (B, 1, m, C) a few queries at a time: the same result, whatever kernel torch takes for it."""
    batch, _, count, _ = query.shape
    at_once = max(1, limit // (2 * batch * key.shape[2] * max(4, query.element_size())))
    if count <= at_once:
        return F.scaled_dot_product_attention(query, key, value)
    out = torch.empty_like(query)
    for start in range(0, count, at_once):
        part = query[:, :, start : start + at_once]
        out[:, :, start : start + at_once] = F.scaled_dot_product_attention(part, key, value)
    return out


def fused_kernels_only() -> contextlib.AbstractContextManager[Any]:
    """torch raises RuntimeError instead of building the matrix."""
    if hasattr(torch.nn, "attention"):  # torch 2.3
        from torch.nn.attention import SDPBackend, sdpa_kernel

        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
    manager: contextlib.AbstractContextManager[Any] = torch.backends.cuda.sdp_kernel(enable_math=False)
    return manager
