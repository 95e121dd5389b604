"""The Tagger's settings, declared once: for its page, the step of the Extras tab, and the command line.

Imports no model and no array, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Literal

from lib_trainer.options.declare import Section, option
from lib_trainer.options.describe import FieldSpec, describe
from lib_trainer.tagging.choices import (
    DEFAULT_CHARACTER_THRESHOLD,
    DEFAULT_TEMPLATE,
    DEFAULT_THRESHOLD,
    FLOOR,
    How,
    Policy,
    Sort,
)

if TYPE_CHECKING:
    from lib_trainer.tagging.captions.style import Style
    from lib_trainer.tagging.scores.table import Thresholds
    from lib_trainer.tagging.views import Selection


class TaggerSettings(Section, frozen=True):
    """Tagger"""

    folder: Annotated[str, option("Folder of pictures", "Its full path.", place="path", bare=True)] = ""
    recursive: Annotated[
        bool,
        option("With its subfolders", "Pictures in folders below are tagged, too.", flag="no-recursive", bare=True),
    ] = True
    models: Annotated[
        tuple[str, ...],
        option(
            "Model",
            "Several are taken together, from their kept scores.",
            width="wide",
            offers="taggers",
            flag="model",
        ),
    ] = ()
    how: Annotated[
        How,
        option(
            "Several taggers",
            "How their scores of one tag are taken together.",
            names={"mean": "Mean", "union": "Union (one is enough)", "agreement": "Agreement (all must)"},
            flag="ensemble",
            bare=True,
        ),
    ] = "mean"
    device: Annotated[
        Literal["auto", "cpu"],
        option(
            "Runs on",
            "What computes the scores.",
            names={"auto": "Graphics card, if it can", "cpu": "Processor"},
            bare=True,
        ),
    ] = "auto"
    general: Annotated[
        float,
        option(
            "General tags",
            "Tags that score higher are taken. Every model has its usual value, where precision equals recall.",
            low=FLOOR,
            high=1,
            step=0.01,
            slider=True,
            bare=True,
        ),
    ] = DEFAULT_THRESHOLD
    character: Annotated[
        float,
        option(
            "Characters",
            "Names of characters that score higher are taken.",
            low=FLOOR,
            high=1,
            step=0.01,
            slider=True,
            bare=True,
        ),
    ] = DEFAULT_CHARACTER_THRESHOLD
    mcut_general: Annotated[
        bool, option("MCut, general", "A threshold of its own for each picture, by MCut.", bare=True)
    ] = False
    mcut_character: Annotated[
        bool, option("MCut, characters", "A threshold of its own for each picture, by MCut.", bare=True)
    ] = False
    ratings: Annotated[bool, option("Rating as a tag", "Write the likeliest rating, too.", bare=True)] = False
    overrides: Annotated[
        str,
        option(
            "Lines of single tags",
            "Thresholds of their own, as in long hair: 0.5, sword: 0.2.",
            width="grows",
            flag="tag-threshold",
            repeats=True,
        ),
    ] = ""
    trigger: Annotated[str, option("Trigger word", "Stands first.", width="wide")] = ""
    exclude: Annotated[
        str,
        option(
            "Tags to leave out",
            "Tags, wildcards (* background) and /expressions/, separated by commas.",
            width="grows",
        ),
    ] = ""
    policy: Annotated[
        Policy,
        option(
            "A caption that is there",
            "Tags typed by hand stay, whatever is chosen.",
            names={
                "merge": "Merge: refresh the tagger's tags, keep the rest",
                "replace": "Replace: write anew, keep what was typed by hand",
                "append": "Append: new tags behind what is there",
                "prepend": "Prepend: new tags before what is there",
                "skip": "Skip: leave captions that exist",
            },
            width="wide",
        ),
    ] = "merge"
    foreign: Annotated[
        bool,
        option(
            "Captions found here were made by another tagger: they may go",
            "Tags of unknown origin count as a tagger's.",
            width="wide",
            bare=True,
        ),
    ] = False
    restore: Annotated[
        bool,
        option(
            "Bring back tags that were removed by hand or by a plan",
            "They may come back.",
            width="wide",
            bare=True,
        ),
    ] = False
    always: Annotated[
        str, option("Tags for every picture", "Stand behind the trigger word.", advanced=True, width="grows", bare=True)
    ] = ""
    sort: Annotated[
        Sort,
        option(
            "Order",
            "Of the tags that the tagger has found.",
            names={"score": "Score", "alphabet": "Alphabet", "frequency": "Frequency in the folder"},
            advanced=True,
            bare=True,
        ),
    ] = "score"
    underscores: Annotated[bool, option("Underscores (long_hair)", "In place of spaces.", advanced=True, bare=True)] = (
        False
    )
    escaped: Annotated[
        bool,
        option(
            "Brackets escaped",
            "With backslashes, as prompts want them and captions for training do not.",
            advanced=True,
            headless=True,
            flag="escape",
        ),
    ] = False
    template: Annotated[
        str,
        option("File name", "{name}, {extension} and {folder} are filled in.", advanced=True, flag="file-name"),
    ] = DEFAULT_TEMPLATE

    @property
    def selection(self) -> Selection:
        from lib_trainer.tagging.views import Selection

        return Selection(self.folder, self.recursive, self.models, self.how)

    @property
    def thresholds(self) -> Thresholds:
        """Raises `ConfigError` in one sentence for what cannot be."""
        from lib_trainer.tagging.scores.table import Thresholds, parse_overrides

        return Thresholds(
            general=float(self.general or 0),
            character=float(self.character or 0),
            mcut_general=self.mcut_general,
            mcut_character=self.mcut_character,
            ratings=self.ratings,
            overrides=parse_overrides(self.overrides),
        )

    @property
    def style(self) -> Style:
        """Raises `ConfigError` in one sentence for what cannot be."""
        return self.style_where(tagger_specs()["exclude"].label)

    def style_where(self, exclude: str) -> Style:
        """The same where the option `exclude` is called so: its label on a page, its flag on the command line."""
        from lib_trainer.captions.document import KEEP
        from lib_trainer.captions.tags import TagPatterns, split_tags
        from lib_trainer.refusals import ConfigError, Field
        from lib_trainer.tagging.captions.style import Style

        for name in ("trigger", "always"):  # what is written is read again as tags and what parts them
            if KEEP in getattr(self, name):
                raise ConfigError("edit.separator", field=Field(name, tagger_specs()[name].label), separator=KEEP)
        return Style(
            policy=self.policy,
            sort=self.sort,
            underscores=self.underscores,
            escaped=self.escaped,
            trigger=" ".join(self.trigger.split()),
            always=tuple(tag for line in self.always.splitlines() for tag in split_tags(line)),
            excluded=TagPatterns.parse(self.exclude, exclude),
            foreign=self.foreign,
            restore=self.restore,
            template=self.template.strip() or DEFAULT_TEMPLATE,
        )


@functools.cache
def tagger_specs() -> dict[str, FieldSpec]:
    """Every setting by its name, in order."""
    return describe(TaggerSettings)
