"""The report as charts and findings: inside the page, and as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from lib_trainer.captions.tokens import LIMITS
from lib_trainer.counts import counted
from lib_trainer.dataset.facts import PictureFacts
from lib_trainer.dataset.report import Finding, Report
from lib_trainer.refusals import Sentence
from lib_trainer.ui.dataset.html import button
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.kit.pictures import jpeg_uri

REMEDIES = {
    "trash": "Move to the trash",
    "keep-one": "Keep one of each, the rest to the trash",
    "convert": "Convert to UTF-8",
    "caption": "Write the trigger word there",
    "trash-orphans": "Move to the trash",
    "rename": "Rename them",
    "prompt-only": "Keep the prompts alone",
    "plain-commas": "Write plain commas",
}
SHOWN = 12
"""Findings of one kind that are listed; the rest are counted."""
WIDTH, ROW = 420, 20


def report_html(report: Report, version: int) -> str:
    """Charts on top, findings below, the worst first. `version`: of the set that it is of; its buttons say so."""
    note = "" if report.checked == report.total else f" ({report.checked:,} of them looked at)"
    findings = _findings(report.findings, of=version)
    pictures = counted(report.total, "picture")
    return (
        f'<div class="dataset-report"><p><b>{pictures}</b>{note}, {_counted(report.findings)}.</p>'
        f'<div class="dataset-charts">{charts_html(report)}</div>{findings or "<p>Nothing was found.</p>"}</div>'
    )


def _counted(findings: Sequence[Finding]) -> str:
    """As many as there are lines below, and of how many kinds, if there are more of one."""
    kinds = len({one.title for one in findings})
    said = counted(len(findings), "finding")
    return said if kinds == len(findings) else f"{said} of {counted(kinds, 'kind')}"


def charts_html(report: Report) -> str:
    """Buckets, sizes, tokens, tags and the balance of concepts."""
    sizes = sorted(report.sizes.items(), key=lambda one: -one[1])
    shown = [(f"{w} × {h}", count) for (w, h), count in sizes[:8]]
    if len(sizes) > 8:
        shown.append((f"{len(sizes) - 8} other sizes", sum(count for _, count in sizes[8:])))
    buckets = sorted(report.buckets.items(), key=lambda one: one[0][0] / one[0][1])
    weights = [
        (f"{one.folder or '(the folder itself)'}: {one.pictures} × {one.shown / one.pictures:g}", round(one.shown))
        for one in report.concepts
    ]
    charts = [
        bars("Sizes", shown),
        bars(
            "Aspect buckets at the training size, and what is cropped away",
            [(f"{w} × {h}, {one.cropped:.0%}", one.pictures) for (w, h), one in buckets],
        ),
        bars("Caption length in tokens", _ranges(report.tokens, 25, LIMITS[-1])),
        bars("Tags in a caption", _ranges(report.tags, 10, 80)),
        bars("Shown in an epoch", weights),
    ]
    return "".join(chart for chart in charts if chart)


def bars(title: str, rows: Sequence[tuple[str, int]]) -> str:
    """A chart of horizontal bars as SVG; empty where there is nothing to show."""
    rows = rows[:24]
    if not rows:
        return ""
    most = max(count for _, count in rows) or 1
    lines = []
    for place, (name, count) in enumerate(rows):
        y = 26 + place * ROW
        width = (WIDTH - 200) * count / most
        lines.append(
            f'<text x="140" y="{y + 12}" text-anchor="end">{escape(name[:24])}</text>'
            f'<rect x="148" y="{y + 2}" width="{max(width, 1):.1f}" height="{ROW - 6}" rx="2"/>'
            f'<text x="{154 + width:.1f}" y="{y + 12}">{count:,}</text>'
        )
    height = 34 + len(rows) * ROW
    return (
        f'<svg class="dataset-chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f'<text x="8" y="16" class="dataset-chart-title">{escape(title)}</text>{"".join(lines)}</svg>'
    )


def _ranges(values: Sequence[int], step: int, last: int) -> list[tuple[str, int]]:
    """How many values lie in 0–24, 25–49 …; what is above `last` is one range."""
    if not values:
        return []
    counts: dict[int, int] = {}
    for value in values:
        counts[min(value // step, last // step)] = counts.get(min(value // step, last // step), 0) + 1
    top = max(counts)
    names = [f"{i * step}–{(i + 1) * step - 1}" if i < last // step else f"{last} and more" for i in range(top + 1)]
    return [(names[i], counts.get(i, 0)) for i in range(top + 1)]


def _findings(findings: Sequence[Finding], *, of: int | None = None, small: Mapping[str, bytes] | None = None) -> str:
    """By their titles. `of`: the version of the set that the buttons are for; None for a report without any."""
    order = {"error": 0, "warning": 1, "info": 2}
    numbered = sorted(enumerate(findings), key=lambda one: order[one[1].level])
    groups: dict[Sentence, list[tuple[int, Finding]]] = {}
    for number, finding in numbered:
        groups.setdefault(finding.title, []).append((number, finding))
    parts = []
    for title, members in groups.items():
        lines = "".join(_finding(number, one, of, small or {}) for number, one in members[:SHOWN])
        more = f"<p>… and {len(members) - SHOWN:,} more</p>" if len(members) > SHOWN else ""
        level = members[0][1].level
        parts.append(
            f'<details class="dataset-finding dataset-{level}"{" open" if level != "info" else ""}>'
            f"<summary>{escape(told(title))} <span>{_count(members)}</span></summary>{lines}{more}</details>"
        )
    return "".join(parts)


def _count(members: Sequence[tuple[int, Finding]]) -> str:
    if len(members) > 1:
        return f"{len(members):,} findings"
    one = members[0][1]
    count, what = (len(one.pictures), "picture") if one.pictures else (len(one.paths), "caption")
    return f"{count:,} {what}{'' if count == 1 else 's'}" if count else ""


def _finding(number: int, one: Finding, of: int | None, small: Mapping[str, bytes]) -> str:
    text = f"<p>{escape(told(one.text))}"
    if of is not None:
        if one.pictures:
            text += " " + button(f"Show {len(one.pictures):,}", "show", number=number, of=of)
        if one.remedy in REMEDIES:
            text += " " + button(REMEDIES[one.remedy], "remedy", number=number, of=of)
        elif one.remedy == "edit" and one.kind in ("misspelt", "leak", "singleton"):
            text += " " + button("Mend", "remedy", number=number, of=of)
    pictures = "".join(
        f'<img src="{jpeg_uri(small[key])}" title="{escape(key)}" alt="">'
        for key in one.pictures[:SHOWN]
        if small.get(key)
    )
    names = "" if of is not None or pictures else escape(", ".join(one.pictures[:SHOWN]))
    return f"{text}</p><div>{pictures}{names}</div>" if pictures or names else f"{text}</p>"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1000px; padding: 0 1em; color: #1f2937; }
.dataset-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 12px; }
svg { border: 1px solid #d4d4d8; border-radius: 8px; width: 100%; height: auto; }
svg text { font-size: 11px; fill: #4b5563; } svg rect { fill: #f97316; }
svg .dataset-chart-title { font-weight: 600; font-size: 12px; fill: #1f2937; }
details { border: 1px solid #d4d4d8; border-left-width: 5px; border-radius: 6px; margin: 8px 0; padding: 6px 12px; }
.dataset-error { border-left-color: #b91c1c; } .dataset-warning { border-left-color: #f97316; }
summary { font-weight: 600; cursor: pointer; } summary span { color: #6b7280; font-weight: 400; }
img { height: 90px; margin: 2px; border-radius: 4px; }
"""


OPENING = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Report on '
"""How a report begins, and hardly another file."""


def is_report(path: Path) -> bool:
    """Whether a file is such a report, of whatever set. Raises `OSError`."""
    with path.open("rb") as file:
        return file.read(len(OPENING)) == OPENING.encode()


def report_file(report: Report, root: Path, facts: Mapping[str, PictureFacts]) -> str:
    """The report as one HTML file, with small copies of the pictures that findings name."""
    small = {key: one.small for key, one in facts.items()}
    return (
        f"{OPENING}{escape(root.name)}</title>"
        f"<style>{STYLE}</style></head><body><h1>{escape(root.name)}</h1><p>{escape(str(root))} · {report.total:,} "
        f'pictures, {report.checked:,} looked at</p><div class="dataset-charts">{charts_html(report)}</div>'
        f"<h2>Findings</h2>{_findings(report.findings, small=small) or '<p>Nothing was found.</p>'}"
        "</body></html>"
    )
