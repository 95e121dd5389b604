"""What a page says to its reader: sentences with the labels of options, numbered so that a repeated one is seen."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from html import escape

from lib_trainer.config.fields import label_of
from lib_trainer.options.describe import FieldSpec
from lib_trainer.refusals import Field, Named, Problem, Sentence, TrainerError, one_line, spoken

_log = logging.getLogger(__name__)
NOWHERE: Mapping[str, str] = {}


class Notices:
    """The notices of one page, by the prefix of its ids."""

    def __init__(self, prefix: str, named: Named = label_of, elsewhere: Mapping[str, str] = NOWHERE) -> None:
        """`named`: what the page calls an option. `elsewhere`: {option: prefix} of those in another form."""
        self._prefix, self._named, self._numbers = prefix, named, itertools.count(1)
        self._elsewhere = elsewhere

    def say(self, text: str | Sentence, *, error: bool = False, while_active: bool = False) -> str:
        return notice_html(told(text), error=error, number=next(self._numbers), while_active=while_active)

    def of(self, action: Callable[[], object]) -> str:
        """Run `action`, which may return a notice. An error becomes a sentence for the page; a bug's trace goes to the
        console only."""
        try:
            answer = action()
        except TrainerError as error:
            return problems_html(
                error.problems, prefix=self._prefix, number=next(self._numbers), named=self._named,
                elsewhere=self._elsewhere,
            )  # fmt: skip
        except Exception as error:  # a bug must not cost what was typed
            _log.exception("The page '%s' met an unexpected error", self._prefix)
            return self.say(unexpected(error), error=True)
        return answer if isinstance(answer, str) else ""


def naming(specs: Mapping[str, FieldSpec]) -> Named:
    """What a form of these options calls one of them."""

    def named(field: Field, begins: bool = True) -> str:
        spec = specs.get(field.path)
        return label_of(field if spec is None else Field(field.path, spec.label), begins)

    return named


def told(sentence: Sentence | str, named: Named = label_of) -> str:
    """The sentence in the page's language, with the labels of options in place of their paths in a job file."""
    return sentence.text(spoken(), named) if isinstance(sentence, Sentence) else sentence


def unexpected(error: Exception) -> str:
    """What is said of a bug."""
    return told(Sentence("run.unexpected", kind=type(error).__name__, reason=one_line(error)))


def notice_html(text: str, *, error: bool = False, number: int = 0, while_active: bool = False) -> str:
    """A sentence above the panel. `number` makes a repeated notice a new one, so that it is seen again.

    `while_active`: it is about a run under way, and goes when that has ended.
    """
    if not text:
        return ""
    kind, role = ("error", "alert") if error else ("info", "status")
    more = " trainer-notice-active" if while_active else ""
    return (
        f'<div class="trainer-notice trainer-notice-{kind}{more}" role="{role}" data-number="{number}">'
        f"{escape(text)}</div>"
    )


def problems_html(
    problems: Sequence[Problem],
    *,
    prefix: str,
    number: int = 0,
    named: Named = label_of,
    elsewhere: Mapping[str, str] = NOWHERE,
) -> str:
    """What is to be mended, each with the id of its field, beside which `train.js` says it again."""
    tag = "span" if len(problems) == 1 else "li"
    items = []
    for problem in problems:
        field = field_id(elsewhere.get(problem.field, prefix), problem.field)
        items.append(f'<{tag} data-field="{escape(field)}">{escape(told(problem.sentence, named))}</{tag}>')
    many = told(Sentence("page.mend", count=len(items)))
    body = items[0] if len(items) == 1 else f"<p>{escape(many)}</p><ul>{''.join(items)}</ul>"
    return f'<div class="trainer-notice trainer-notice-error" role="alert" data-number="{number}">{body}</div>'


def field_id(prefix: str, path: str) -> str:
    """The element's id of an option's component."""
    return f"{prefix}_{path.replace('.', '_')}" if path else ""
