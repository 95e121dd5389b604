"""Job files of older versions, as tables, in the layout of the next one. What they are given is left alone."""

from __future__ import annotations

from typing import Any


def any_warmup(data: dict[str, Any]) -> dict[str, Any]:
    """From version 1, where one schedule alone had a warm-up, in steps; now each may have one."""
    table = data.get("optimizer")
    if not isinstance(table, dict):
        return data
    learning = dict(table)
    steps = learning.pop("warmup_steps", 100)
    if learning.get("schedule") == "constant_with_warmup":
        learning |= {"schedule": "constant", "warmup": steps}
    return {**data, "optimizer": learning}
