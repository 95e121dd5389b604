"""What mirrored pictures would teach wrongly."""

from __future__ import annotations

from collections import Counter

from lib_trainer.captions.document import cached_key
from lib_trainer.captions.knowledge import built_in
from lib_trainer.captions.tags import split_tags
from lib_trainer.config import JobConfig
from lib_trainer.dataset.scan import Scan
from lib_trainer.refusals import Field, Sentence, few


def mirror_warning(job: JobConfig, scan: Scan) -> Sentence | None:
    """A sentence where pictures are mirrored and captions name what lies on one side, the most frequent first."""
    if not job.augment.mirror:
        return None
    counts: Counter[str] = Counter()
    for sample in scan.samples:
        counts.update({cached_key(tag) for text in sample.written for tag in split_tags(text)})
    sided = [(-count, tag) for tag, count in counts.items() if built_in().asymmetric.matches(tag)]
    if not sided:
        return None
    return Sentence("pictures.mirrored", option=Field("augment.mirror"), tags=few([tag for _, tag in sorted(sided)], 5))
