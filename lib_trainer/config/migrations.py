"""Job files of older versions, as tables, in the layout of the next one. What they are given is left alone."""

from __future__ import annotations

import re
from typing import Any


def first_step(data: dict[str, Any]) -> dict[str, Any]:
    """From version 1 to 2."""
    return any_average(any_warmup(data))


def any_average(data: dict[str, Any]) -> dict[str, Any]:
    """In version 1 whole checkpoints alone had an average, among their own options."""
    table = data.get("finetune")
    if not isinstance(table, dict):
        return data
    tuning, learning = dict(table), data.get("optimizer", {})
    moved = {name: tuning.pop(name) for name in ("ema", "ema_decay") if name in tuning}
    kind = data.get("network", {}).get("kind") if isinstance(data.get("network"), dict) else None
    if kind not in (None, "checkpoint"):
        moved = {}  # it was not read
    return {**data, "finetune": tuning, "optimizer": {**learning, **moved} if isinstance(learning, dict) else learning}


def any_warmup(data: dict[str, Any]) -> dict[str, Any]:
    """In version 1 one schedule alone had a warm-up, in steps; now each may have one."""
    table = data.get("optimizer")
    if not isinstance(table, dict):
        return data
    learning = dict(table)
    steps = learning.pop("warmup_steps", 100)
    if learning.get("schedule") == "constant_with_warmup":
        learning |= {"schedule": "constant", "warmup": steps}
    return {**data, "optimizer": learning}


def prompt_of_one_line(data: dict[str, Any]) -> dict[str, Any]:
    """From version 2 to 3. Until then the lines of a preview's prompt were one, and `--word` was part of it. With a
    space behind the dashes it still is, and has the same tokens."""
    table = data.get("preview")
    if not isinstance(table, dict) or not isinstance(table.get("prompt"), str):
        return data
    prompt = re.sub(r"(^|\s)--(?=[A-Za-z])", r"\1-- ", " ".join(table["prompt"].split()))
    return {**data, "preview": {**table, "prompt": prompt}}
