"""The Dataset tab's panel of buckets: where each picture is trained and what is cut away; and what is kept encoded."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from lib_trainer.config import field_specs, from_values
from lib_trainer.dataset.bucket_preview import Kept, PreviewedBucket, preview_buckets
from lib_trainer.dataset.buckets import Size
from lib_trainer.dataset.latent_cache import checked_days, contents, prune, shown_bytes
from lib_trainer.options.describe import FieldSpec
from lib_trainer.refusals import ConfigError, Count, DatasetError, Field, Sentence, TrainerError
from lib_trainer.training.sizes import sizer_of
from lib_trainer.ui.dataset.common import Answer, Values, opened_set
from lib_trainer.ui.dataset.html import button
from lib_trainer.ui.dataset.view import View
from lib_trainer.ui.kit.form import label
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.kit.pictures import jpeg_uri

FIELDS = (
    "dataset.width", "dataset.height", "buckets.enabled", "buckets.resolutions", "buckets.step", "buckets.low",
    "buckets.high", "buckets.enlarge",
)  # fmt: skip
"""The options of a job that decide at which size a picture is trained."""
SHOWN = 48
"""Pictures of a bucket that are drawn."""
DAYS = 30


def note_sizes(view: View, values: Values) -> None:
    """Remember what the training form says, until something else is typed here; that counts from then on."""
    typed, form = values.get("sizes"), values.get("form")
    if isinstance(typed, Mapping) and typed:
        view.sizes = {path: typed[path] for path in FIELDS if path in typed}
        view.typed_sizes = True
    elif isinstance(form, Mapping) and not view.typed_sizes:
        view.sizes = {path: form[path] for path in FIELDS if form.get(path) is not None}


def buckets(view: View, values: Values) -> None:
    """Show the buckets of the sizes that were sent; `bucket`: open one of them, or close it."""
    _sizer(view)
    view.bucket = _size(values.get("bucket"))


def as_trained(view: View, values: Values) -> None:
    """Take the sizes of the training form again."""
    view.typed_sizes, view.bucket = False, None
    note_sizes(view, {"form": values.get("form")})


def cache_look(view: View, values: Values) -> None:
    """Count what is kept encoded."""
    view.cache_days = checked_days(values.get("days", DAYS))
    view.cached = contents(_folder(view), view.cache_days)


def cache_prune(view: View, values: Values) -> Answer:
    """Remove what no run has read for as many days as were looked for."""
    gone = prune(_folder(view), checked_days(values.get("days", DAYS)))
    view.cached = contents(_folder(view), view.cache_days)
    return told(Sentence("cache.removed", pictures=Count(gone.pictures), size=shown_bytes(gone)))


def _folder(view: View) -> Any:
    folder = opened_set(view).latents
    if folder is None:
        raise DatasetError("cache.no_folder")
    return folder()


def _size(text: Any) -> Size | None:
    width, _, height = str(text or "").partition("x")
    return (int(width), int(height)) if width.isdigit() and height.isdigit() else None


def _sizer(view: View) -> Any:
    """Raises `ConfigError` for sizes that are none."""
    return sizer_of(from_values({path: _value(field_specs()[path], raw) for path, raw in view.sizes.items()}))


def _value(spec: FieldSpec, raw: Any) -> Any:
    """What a field of a page holds, as its option wants it; its own check judges it."""
    if spec.kind != "int" or isinstance(raw, int):
        return raw
    try:
        return int(str(raw).strip())
    except ValueError:
        raise ConfigError("edit.value", field=Field(spec.path), given=raw, allowed=spec.allowed) from None


def buckets_html(view: View) -> str:
    """The form, a line for each bucket, the pictures of the open one, and what is kept encoded."""
    return _form(view) + _found(view) + _cache_html(view)


def _form(view: View) -> str:
    entries = "".join(_entry(field_specs()[path], view.sizes.get(path, field_specs()[path].default)) for path in FIELDS)
    return (
        f'<form id="dataset_bucket_form" class="dataset-bucket-form"><div class="dataset-row">{entries}</div>'
        f'<div class="dataset-row">{button("Show the buckets", "buckets", kind="main")}'
        f"{button('As in the training form', 'as-trained', title='Take its sizes again')}</div></form>"
    )


def _entry(spec: FieldSpec, value: Any) -> str:
    common = f'name="{spec.path}" title="{escape(spec.help)}"'
    if spec.kind == "bool":
        return f'<label><input type="checkbox" {common}{" checked" if value else ""}> {escape(spec.label)}</label>'
    short = "" if spec.kind == "str" else " dataset-short"
    return (
        f'<label>{escape(label(spec))} <input {common} class="dataset-input{short}" value="{escape(str(value))}" '
        'spellcheck="false"></label>'
    )


def _found(view: View) -> str:
    opened = opened_set(view)
    try:
        sizer = _sizer(view)
    except TrainerError as error:
        return f'<p class="dataset-empty">{escape(told(error.sentence))}</p>'
    trained = [key for key, item in opened.editor.items.items() if item.repeats]
    sizes = {key: size for key in trained if (size := opened.facts.size(key))}
    found = preview_buckets(sizes, sizer)
    if not found:
        return '<p class="dataset-empty">There is no picture that would be trained.</p>'
    most = max(len(one.pictures) for one in found)
    rows = "".join(_row(one, most, view.bucket == one.size) for one in found)
    chosen = next((one for one in found if one.size == view.bucket), None)
    return (
        '<table class="dataset-list dataset-buckets"><thead><tr><th>Bucket</th><th>Pictures</th><th></th>'
        f"<th>Cut away</th><th>Enlarged</th></tr></thead><tbody>{rows}</tbody></table>"
        + (_pictures(view, chosen) if chosen else "")
    )


def _row(one: PreviewedBucket, most: int, opened: bool) -> str:
    width, height = one.size
    name, count = f"{width}x{height}", len(one.pictures)
    press = button(f"{width} × {height}", "buckets", bucket="" if opened else name, title="Show what is cut away")
    return (
        f"<tr{' class=dataset-on' if opened else ''}><td>{press}</td><td>{count:,}</td>"
        f'<td class="dataset-share"><i style="width:{count / most:.0%}"></i></td><td>{one.cut:.0%}</td>'
        f"<td>{one.enlarged:,}</td></tr>"
    )


def _pictures(view: View, bucket: PreviewedBucket) -> str:
    """Those that lose most, with what is cut away darkened."""
    shown = bucket.pictures[:SHOWN]
    facts = opened_set(view).facts.get([one.key for one in shown])
    cells = "".join(_cell(one, facts[one.key].size or bucket.size, facts[one.key].small) for one in shown)
    rest = len(bucket.pictures) - len(shown)
    more = f"<p>and {rest:,} more, which lose less</p>" if rest else ""
    return (
        f"<h4>{bucket.size[0]} × {bucket.size[1]}: what is cut away is dark; random crops lie elsewhere</h4>"
        f'<div class="dataset-crops">{cells}</div>{more}'
    )


def _cell(one: Kept, size: Size, small: bytes) -> str:
    place = f"left:{one.left:.2%};top:{one.top:.2%};width:{one.width:.2%};height:{one.height:.2%}"
    told_scale = f", enlarged {one.scale:.2f} times" if one.scale > 1 + 1e-6 else ""
    return (
        f'<figure title="{escape(one.key)}"><div class="dataset-crop" style="aspect-ratio:{size[0]}/{size[1]}">'
        f'<img src="{jpeg_uri(small)}" alt=""><i style="{place}"></i></div>'
        f"<figcaption>{escape(one.key.rpartition('/')[2])}: {1 - one.share:.0%} cut{told_scale}</figcaption></figure>"
    )


def _cache_html(view: View) -> str:
    if opened_set(view).latents is None:
        return ""
    found, said = view.cached, ""
    if found is not None:
        said = (
            f"<p>Encoded pictures that are kept: {found.all.pictures:,}, {shown_bytes(found.all)}; no run has read "
            f"{found.unused.pictures:,} of them, {shown_bytes(found.unused)}, for "
            f"{view.cache_days:g} {'day' if view.cache_days == 1 else 'days'}. What a running job reads stays.</p>"
        )
        if found.unused.pictures:
            said += button(f"Remove {found.unused.pictures:,}", "cache-prune", kind="bad", days=view.cache_days)
    return (
        '<h4>Encoded pictures of all sets</h4><div class="dataset-row"><label>Not read for <input id="dataset_days" '
        f'class="dataset-input dataset-short" value="{view.cache_days:g}"> days</label>'
        f"{button('Count them', 'cache-look')}</div>{said}"
    )
