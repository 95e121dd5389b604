"""What a mutated copy imports in the place of mutmut's trampoline, so that it runs as quickly as the plain program.

Of all functions that mutmut has mutated only those of `watched.json`, which lies beside this file, are wrapped; a call
of one is noted in `hits`, and goes to the mutant that `active` names. Every other function stays what it was.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

MutantDict = dict[str, Callable[..., Any]]
_LIST = Path(__file__).with_name("watched.json")
WATCHED = frozenset(json.loads(_LIST.read_text(encoding="utf-8")) if _LIST.exists() else ())
"""Functions in mutmut's spelling: `module.x_function` and `module.xǁClassǁmethod`."""

hits: set[str] = set()
active = os.environ.get("MUTANT_UNDER_TEST", "")
"""A mutant in mutmut's spelling, which is its function's with `__mutmut_` and a number; empty for none."""


def wrap_in_trampoline(
    mutants: MutantDict, is_classmethod: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """mutmut's decorator. `mutants` is filled after the function is made."""

    def switched(original: Callable[..., Any]) -> Callable[..., Any]:
        name = f"{original.__module__}.{_spelt(original.__qualname__)}"
        if name not in WATCHED:
            return original

        @functools.wraps(original)
        def switch(*args: Any, **kwargs: Any) -> Any:
            hits.add(name)
            if active.rpartition("__mutmut_")[0] != name:
                return original(*args, **kwargs)
            mutant = mutants[active.rpartition(".")[2]]
            if is_classmethod:
                return getattr(args[0], mutant.__name__)(*args[1:], **kwargs)
            return mutant(*args, **kwargs)

        return switch

    return switched


def _spelt(name: str) -> str:
    return f"xǁ{name.replace('.', 'ǁ')}" if "." in name else f"x_{name}"
