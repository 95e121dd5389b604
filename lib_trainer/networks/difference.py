"""What has changed between two weights, as a LoRA: the best low-rank approximation (Eckart & Young 1936)."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def difference_as_lora(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """delta (out, in, …) → down (r, in, …), up (out, r, 1, 1) or (out, r), whose product is nearest to it in fp32.

    Singular values are shared evenly between the two; the rank is at most what the matrix has.
    """
    flat = delta.float().flatten(1)
    rank = min(rank, *flat.shape)
    u, s, vh = torch.linalg.svd(flat, full_matrices=False)
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * vh[:rank]
    shape = (-1, rank, 1, 1) if delta.ndim == 4 else (-1, rank)
    return down.reshape(rank, *delta.shape[1:]).contiguous(), up.reshape(shape).contiguous()


def lora_of_differences(
    deltas: Iterable[tuple[str, torch.Tensor]], rank: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Tensors of a LoRA file from (key, weight difference); what has not changed is left out."""
    tensors = {}
    for key, delta in deltas:
        if bool(delta.any()):
            down, up = difference_as_lora(delta, rank)
            tensors[f"{key}.lora_down.weight"] = down.cpu().to(dtype)
            tensors[f"{key}.lora_up.weight"] = up.cpu().to(dtype)
            tensors[f"{key}.alpha"] = torch.tensor(float(down.shape[0]), dtype=dtype)
    return tensors
