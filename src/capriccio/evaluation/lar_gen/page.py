"""The report: tables as CSV, figure 12 as PNG, and one page with everything in it, which needs no network."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from capriccio.evaluation.lar_gen import tables
from capriccio.evaluation.lar_gen.measures import CONSISTENCIES, MEASURES
from capriccio.evaluation.lar_gen.runs import picture_path
from capriccio.evaluation.lar_gen.samples import Sample
from capriccio.pictures import open_picture, save_png, write_whole

Row = Mapping[str, Any]
SHOWN = 40
"""Samples whose pictures are on the page, at most: the first ones, which are a fair choice of all."""
SIDE = 192
"""Pixels of the longer side of a picture on the page."""

_HIGHER = {"clip_i", "clip_t", "outside", "identity", "kind", "colour", "wish", "backdrop"}
_INK, _IMAGE, _TEXT = "#8a8a8a", "#d9772b", "#2f86c9"  # to be read on light paper and on dark


def report(
    folder: Path,
    samples: Sequence[Sample],
    rows: Sequence[Row],
    measures: Sequence[str],
    manifest: Mapping[str, Any],
    reasons: tables.Reasons | None = None,
) -> Path:
    """Write ``variants.csv``, ``beta.png`` where there is a sweep, and ``index.html``; return the page.

    Args:
        folder: That a run has filled.
        samples: That were painted.
        rows: What was read of them.
        measures: Their names, in order.
        manifest: What the numbers depend on.
        reasons: Why these weights do not stand as the paper's do, where that is known.
    """
    lines = tables.summary(rows, measures)
    write_whole(folder / "variants.csv", _csv(lines))
    sweep = tables.sweep(rows)
    figure = None
    if len(sweep) > 1:
        figure = beta_plot(sweep)
        save_png(figure, folder / "beta.png")
    page = _template().render(
        data=manifest.get("data", {}),
        verdicts=tables.verdicts(rows, reasons),
        tables=[part for table in tables.TABLES if (part := _table(rows, table))],
        consistencies=_consistencies(lines, measures),
        measures={name: MEASURES[name] for name in measures},
        figure=None if figure is None else _embedded(figure, "PNG"),
        gallery=_gallery(folder, samples[:SHOWN], rows),
        total=len(samples),
        variants=tables.variants_of(rows),
        manifest=json.dumps(manifest, indent=1, ensure_ascii=False),
    )
    return write_whole(folder / "index.html", page.encode())


def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    jinja = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return jinja.get_template("page.html")


def _csv(lines: Sequence[Row]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue().encode()


# --- tables ------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Row], table: tables.Table) -> dict[str, Any] | None:
    """A table of the paper for the page: the variants that were painted, what each gains over the one before it."""
    lines = {line["variant"]: line for line in tables.summary(rows, tuple(tables.NAMES))}
    painted = [variant for variant in table.variants if variant in lines]
    if not painted:
        return None
    cells = []
    for number, variant in enumerate(painted):
        gains = {m: tables.gain(rows, m, painted[number - 1], variant) if number else None for m in tables.NAMES}
        paper = dict(zip(tables.NAMES, tables.PAPER[variant], strict=True)) if variant in tables.PAPER else {}
        shown = [lines[one] for one in painted]
        measured = [{"bar": _bar(shown, number, m), "gain": gains[m], "paper": paper.get(m)} for m in tables.NAMES]
        cells.append({"variant": variant, "n": lines[variant]["n"], "measured": measured})
    return {"title": table.title, "rows": cells}


def _bar(lines: Sequence[Row], number: int, measure: str) -> dict[str, float]:
    """A value with its interval, and where both lie between the ends of the column, in per cent."""
    low = min(0.0, *(line[f"{measure}_low"] for line in lines))
    span = max(max(line[f"{measure}_high"] for line in lines) - low, 1e-9)
    value, *ends = (lines[number][f"{measure}{end}"] for end in ("", "_low", "_high"))
    at, left, right = (100 * (each - low) / span for each in (value, *ends))
    return {"value": value, "low": ends[0], "high": ends[1], "at": at, "left": left, "right": right}


def _consistencies(lines: Sequence[Row], measures: Sequence[str]) -> list[dict[str, Any]]:
    """The four consistencies, and the alarm, each measure a column; the best of a column is marked."""
    groups = {**CONSISTENCIES, "copying": ("copied",)}
    shown = {name: [one for one in group if one in measures] for name, group in groups.items()}
    models = [line for line in lines if line["variant"] != "drawn"] or lines
    best = {m: (max if m in _HIGHER else min)(line[m] for line in models) for m in measures}
    return [
        {
            "name": name,
            "measures": group,
            "rows": [
                (line["variant"], [(_bar(lines, n, m), line[m] == best[m] and line in models) for m in group])
                for n, line in enumerate(lines)
            ],
        }
        for name, group in shown.items()
        if group
    ]


# --- pictures ----------------------------------------------------------------------------------------------------


def _gallery(folder: Path, samples: Sequence[Sample], rows: Sequence[Row]) -> list[dict[str, Any]]:
    read = {(row["variant"], row["sample"]): row for row in rows}
    return [
        {
            "text": sample.text,
            "id": sample.id,
            "source": _thumbnail(outlined(sample.place.source, sample.place.mask)),
            "subject": _thumbnail(sample.subject),
            "painted": [
                {
                    "variant": variant,
                    "picture": _thumbnail(open_picture(picture_path(folder, variant, sample.id))),
                    "row": read[variant, sample.id],
                }
                for variant in tables.variants_of(rows)
                if (variant, sample.id) in read
            ],
        }
        for sample in samples
    ]


def outlined(source: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the source with the border of the mask drawn on it, and the hole dimmed."""
    wide = 2 * max(1, max(source.size) // 128) + 1
    rim = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(wide)), mask)
    dimmed = Image.blend(source.convert("RGB"), Image.new("RGB", source.size, "white"), 0.45)
    shown = Image.composite(dimmed, source.convert("RGB"), mask)
    shown.paste("#ff2d6f", mask=rim)
    return shown


def _thumbnail(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _embedded(small, "WEBP", quality=84)


def _embedded(picture: Image.Image, form: str, **settings: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, form, **settings)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def beta_plot(sweep: Sequence[Mapping[str, float]], width: int = 720, height: int = 400) -> Image.Image:
    """Draw figure 12: CLIP-I (left scale) and CLIP-T (right scale) against beta, with their intervals.

    Args:
        sweep: Two lines or more, from `tables.sweep`.
        width: Pixels.
        height: Pixels.

    Returns:
        RGBA on nothing, in inks that light and dark paper both show.
    """
    sharp = 2  # drawn twice as large and shrunk, for soft edges
    size, margin = (width * sharp, height * sharp), 56 * sharp
    plot, font = Image.new("RGBA", size, (128, 128, 128, 0)), ImageFont.load_default(14 * sharp)
    brush = ImageDraw.Draw(plot)
    left, top, right, bottom = margin, margin, size[0] - margin, size[1] - margin
    betas = [line["beta"] for line in sweep]
    across = _scale(min(betas), max(betas), left, right)
    brush.line([(left, top), (left, bottom), (right, bottom), (right, top)], _INK, sharp)
    for beta in betas:
        brush.text((across(beta), bottom + 8 * sharp), f"{beta:g}", _INK, font, anchor="ma")
    brush.text(((left + right) / 2, size[1] - 8 * sharp), "beta", _INK, font, anchor="md")
    for measure, ink, edge, anchor in (("clip_i", _IMAGE, left, "rm"), ("clip_t", _TEXT, right, "lm")):
        ends = [line[f"{measure}{end}"] for line in sweep for end in ("_low", "_high")]
        up = _scale(min(ends), max(ends), bottom - 8 * sharp, top + 8 * sharp)
        aside = edge + (-8 if edge == left else 8) * sharp
        for tick in np.linspace(min(ends), max(ends), 4):
            brush.text((aside, up(tick)), f"{tick:.2f}", ink, font, anchor=anchor)
        points = [(across(line["beta"]), up(line[measure])) for line in sweep]
        brush.line(points, ink, 3 * sharp, joint="curve")
        for (x, y), line in zip(points, sweep, strict=True):
            brush.line([(x, up(line[f"{measure}_low"])), (x, up(line[f"{measure}_high"]))], ink, sharp)
            brush.ellipse([x - 5 * sharp, y - 5 * sharp, x + 5 * sharp, y + 5 * sharp], ink)
        brush.text((edge, top - 12 * sharp), tables.NAMES[measure], ink, font, anchor="md")
    return plot.resize((width, height), Image.Resampling.LANCZOS)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)
