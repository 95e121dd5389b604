"""What can be chosen, with its defaults: imports nothing, so that `--help` answers at once."""

from __future__ import annotations

from typing import Literal, get_args

DEFAULT_THRESHOLD = 0.35
"""General tags, where a model has no published value; the reference demo's own default."""

DEFAULT_CHARACTER_THRESHOLD = 0.85
FLOOR = 0.01
"""Lower scores are not kept; a threshold may not be lower."""

DEFAULT_TEMPLATE = "{name}.txt"

Policy = Literal["skip", "replace", "prepend", "append", "merge"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
"""skip: a caption that is there stays. replace: made anew; what was written by hand comes first. prepend, append: the
found tags before or after what is there, none twice. merge: what is there keeps its order, tags by a tagger that are no
longer found go, new ones come at the end."""

Sort = Literal["score", "alphabet", "frequency"]
SORTS: tuple[Sort, ...] = get_args(Sort)

How = Literal["mean", "union", "agreement"]
"""Several models' scores of one label, by the models that know it: their mean; the highest (one model is enough); the
lowest (all must agree). What a model scored below `FLOOR` counts as 0."""
