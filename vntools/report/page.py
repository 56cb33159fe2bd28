"""A result as one page of HTML with its pictures inside; it needs no network to be read."""

from __future__ import annotations

__all__ = ["page"]

import html
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vntools.base.optional import require

Record = Mapping[str, Any]
Draw = Callable[..., Any]

_INK, _SERIES, _LIMIT, _OTHER = "#010203", "#2a78b5", "#d1661c", "#7a8793"
_WIDTH, _HEIGHT = 7.2, 3.2  # inches; the page scales it
_MOST_LAYERS = 40
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "vntools"}
_ROWS = {
    "latency_ms": "Latency",
    "gpu_compute_ms": "GPU Compute Time",
    "compute_ms": "Compute Time",
    "enqueue_ms": "Enqueue Time",
    "h2d_ms": "H2D Latency",
    "d2h_ms": "D2H Latency",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b2329; --paper: #fdfdfc; --line: #d5dade;
  --quiet: #5b6872; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaed; --paper: #15191c; --line: #384148; --quiet: #9ba8b1; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.protocol, figcaption { color: var(--quiet); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: 1rem 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 34rem; height: auto; color: var(--ink); }
pre { overflow-x: auto; font-size: .85rem; border: 1px solid var(--line); padding: .8rem; }
"""


def page(record: Record, *, title: str, command: str) -> str:
    """The page of a bench's JSON document.

    Args:
        record: what ``vntools bench --json`` prints: a measurement, several of a sweep
            (``measurements``), a comparison (``contenders``) or a suite (``rows``).
        title: of the page.
        command: that made it.

    Raises:
        Unavailable: ``dependency.missing``: Matplotlib is not installed.
    """
    draw = require("matplotlib.figure", extra="report").Figure
    parts: list[str] = []
    for one in record.get("measurements", [record] if "latency_ms" in record else []):
        parts += _measurement(draw, one)
    if "contenders" in record:
        parts += _comparison(draw, record)
    if "rows" in record:
        parts += _suite(draw, record)
    parts.append(_details(record, command))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def _measurement(draw: Draw, record: Record) -> list[str]:
    """Rows, histogram, and layers against their floors."""
    percents = [k for k in record["latency_ms"] if re.fullmatch(r"p[\d.]+", k)]
    columns = ("min", "median", "mean", *percents, "max")
    rows = [
        (name, *(f"{record[key][c]:.4g}" for c in columns))
        for key, name in _ROWS.items()
        if key in record
    ]
    parts = [
        f"<h2>Batch {record['batch']}</h2>",
        f'<p class="protocol">{html.escape(record["protocol"])}</p>',
        "<p>{throughput_qps:.1f} queries a second, {images_per_s:.1f} images a second; "
        "{n_queries} queries.</p>".format_map(record),
        _against_floor(record),
        _table(("ms", *columns), rows),
    ]
    parts += [f"<p>{html.escape(w)}.</p>" for w in record.get("warnings", ())]
    samples = record.get("samples", {}).get("latency_ms")
    if samples:
        parts.append(_histogram(draw, samples, record["latency_ms"], percents))
    if record.get("layers"):
        parts.append(_layers(draw, record["layers"]))
    return parts


def _against_floor(record: Record) -> str:
    """The least time, and how far the median is from it."""
    floor = record.get("floor")
    if floor is None:
        return ""
    return (
        f"<p>Floor on {html.escape(floor['device']['name'])}: {floor['floor_ms']:.4g} ms, "
        f"{floor['binds']} binds; layer by layer {floor['layered_ms']:.4g} ms. The median is "
        f"{floor['median_over_floor']:.3g} times the floor.</p>"
    )


def _histogram(
    draw: Draw, samples: Sequence[float], row: Record, percents: Iterable[str]
) -> str:
    figure, axes = _subplots(draw, _HEIGHT)
    axes.hist(samples, bins=min(80, max(10, len(samples) // 20)), color=_SERIES)
    marks: dict[float, list[str]] = {}
    nearby = (max(samples) - min(samples)) / 50  # where labels would lie on each other
    for name in ("median", *percents):
        at = next((ms for ms in marks if abs(ms - row[name]) <= nearby), row[name])
        marks.setdefault(at, []).append(name)
        axes.axvline(row[name], color=_LIMIT, linewidth=1)
    for at, names in marks.items():
        axes.text(
            at, 0.98, f" {', '.join(names)}", color=_LIMIT, rotation=90, va="top", fontsize=8,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("queries")
    return _figure(figure, f"Latency of {len(samples)} queries.")


def _layers(draw: Draw, layers: Sequence[Record]) -> str:
    """Bars of the slowest layers, longest first, with their floors as marks."""
    shown = sorted(layers, key=lambda v: -v["ms"])[:_MOST_LAYERS]
    figure, axes = _subplots(draw, 0.8 + 0.22 * len(shown))
    places = range(len(shown))
    axes.barh(places, [v["ms"] for v in shown], color=_SERIES, height=0.7)
    floors = [(i, v["floor_ms"]) for i, v in enumerate(shown) if v.get("floor_ms")]
    axes.scatter(
        [f for _, f in floors], [i for i, _ in floors], color=_LIMIT, marker="|", s=90
    )
    axes.set_yticks(places, [v["name"][-48:] for v in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    left = len(layers) - len(shown)
    more = f" {left} shorter ones are left out." if left else ""
    return _figure(figure, f"Time of each layer; the mark is its floor.{more}")


def _comparison(draw: Draw, record: Record) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for c in record["contenders"]:
        r = c["relation"]
        relation = ("", "", "")
        if r is not None:
            relation = (
                f"{r['ratio']:.3f}",
                f"{r['low']:.3f} to {r['high']:.3f}",
                r["verdict"],
            )
        rows.append((c["name"], c["backend"], f"{c['median_ms']:.4g}", *relation))
    related = [c for c in record["contenders"] if c["relation"] is not None]
    figure, axes = _subplots(draw, 0.9 + 0.4 * len(related))
    for i, c in enumerate(related):
        r = c["relation"]
        axes.plot([r["low"], r["high"]], [i, i], color=_SERIES, linewidth=4)
        axes.plot([r["ratio"]], [i], "o", color=_LIMIT)
    axes.axvline(1, color=_OTHER, linewidth=1)
    axes.set_yticks(range(len(related)), [c["name"] for c in related])
    axes.set_ylim(-0.6, len(related) - 0.4)
    first = record["contenders"][0]["name"]
    axes.set_xlabel(f"latency over that of {first}")
    return [
        "<h2>Side by side</h2>",
        _table(("", "backend", "median ms", "ratio", "95 % interval", "verdict"), rows),
        _figure(figure, f"Ratios with 95 % intervals, {record['rounds']} rounds."),
    ]


def _suite(draw: Draw, record: Record) -> list[str]:
    """The table, and latency against depth and accuracy as in the paper's Figure 2."""
    rows = [
        (
            row["name"],
            *(_short(row[key]) for key in ("depth", "parameters_m", "gmacs")),
            *(
                _short((row["published"] or {}).get(key))
                for key in ("latency_ms", "tensorrt_fp32_a100_ms", "tensorrt_fp16_a100_ms")
            ),
            _short(row["median_ms"]) or "failed",
            _short(row.get("floor_ms")),
        )
        for row in record["rows"]
    ]
    header = ("network", "depth", "parameters M", "GMACs", "paper ms", "TRT FP32",
              "TRT FP16", "measured ms", "floor ms")  # fmt: skip
    parts = [_table(header, rows)]
    drawn = [r for r in record["rows"] if r["published"] and r["median_ms"]]
    if drawn:
        figure, (left, right) = _subplots(draw, _HEIGHT + 0.4, columns=2)
        for axes, x in ((left, "depth"), (right, "median_ms")):
            key = "median_ms" if axes is left else None
            middle = (min(r[x] for r in drawn) + max(r[x] for r in drawn)) / 2
            for row in drawn:
                ours = row["name"].startswith("vanillanet")
                y = row[key] if key else row["published"]["top1"]
                axes.scatter(
                    [row[x]], [y], s=6 + 1.5 * row["parameters_m"], alpha=0.75,
                    color=_SERIES if ours else _OTHER,
                )  # fmt: skip
                if ours:
                    label = row["name"].removeprefix("vanillanet_")
                    side = -1 if row[x] > middle else 1
                    axes.annotate(
                        label, (row[x], y), xytext=(8 * side, -2), fontsize=7, color=_INK,
                        textcoords="offset points", ha="right" if side < 0 else "left",
                    )  # fmt: skip
        left.locator_params(axis="x", integer=True)
        left.set_xlabel("depth")
        left.set_ylabel("measured latency, ms")
        right.set_xlabel("measured latency, ms")
        right.set_ylabel("published top-1, %")
        caption = "As the paper's Figure 2; the area of a circle grows with parameters."
        parts.append(_figure(figure, caption))
    parts += [f"<p>{html.escape(r['name'])}: {html.escape(r['why'])}</p>"
              for r in record["rows"] if r["why"]]  # fmt: skip
    return parts


def _details(record: Record, command: str) -> str:
    left_out = ("samples", "measurements", "rows", "contenders", "layers")
    rest = {k: v for k, v in record.items() if k not in left_out}
    text = html.escape(json.dumps(rest, indent=1))
    return (
        f"<h2>How it was made</h2><pre>{html.escape(command)}</pre>"
        f"<details><summary>Settings and environment</summary><pre>{text}</pre></details>"
    )


def _short(value: float | str | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def cells(tag: str, texts: Iterable[str]) -> str:
        return "".join(f"<{tag}>{html.escape(t)}</{tag}>" for t in texts)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", header)}</tr>{body}</table></div>'


def _subplots(draw: Draw, height: float, *, columns: int = 1) -> tuple[Any, Any]:
    figure = draw(figsize=(_WIDTH, height))
    return figure, figure.subplots(1, columns)


def _figure(figure: Any, caption: str) -> str:
    """A figure as SVG whose ink is the page's, so that it suits light and dark."""
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(colors=_INK, which="both")
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_INK)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(_INK)
    figure.tight_layout()
    out = io.StringIO()
    with require("matplotlib", extra="report").rc_context(_SVG):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
