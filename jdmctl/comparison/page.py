"""A comparison as one HTML file that needs nothing else: tables, curves and pictures are inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

from jdmctl.comparison.cells import Cell
from jdmctl.comparison.cost import Cost
from jdmctl.comparison.cost_tables import cost_tables
from jdmctl.comparison.scenes import Scenes
from jdmctl.comparison.scoring import Drawn
from jdmctl.comparison.sheet import sheet
from jdmctl.evaluation.results import Row

Values = Mapping[tuple[str, str], Row]  # (method, metric)

_COLORS = ("#1f4e9c", "#c2571a", "#2c7a3f", "#8a2f8a", "#7a6a1f", "#1f7a7a", "#444444", "#b02a4a")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1500px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: 3px 8px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
small { color: #777 }
svg { background: #fafafa; border: 1px solid #ddd; margin: 0 1em 1em 0 }
img { image-rendering: pixelated; max-width: 100% }
"""


def page(
    title: str,
    cells: Sequence[Cell],
    costs: Mapping[str, Cost],  # by method
    scenes: Scenes,
    drawn: Sequence[Drawn],
    rows: Sequence[Row],
    goal: float | None = None,  # of the headline, where one is given
) -> str:
    """The whole document."""
    values = {(row.method, row.metric): row for row in rows}
    methods = {row.method: row.passes for row in rows}
    own = list(dict.fromkeys(row.metric for row in rows if " / " not in row.metric and "gap closed" not in row.metric))
    relative = list(dict.fromkeys(row.metric for row in rows if row.metric not in own))
    headline = scenes.headline
    shown = dict.fromkeys([*methods, *(cell.called for cell in cells)])
    colors = {method: _COLORS[number % len(_COLORS)] for number, method in enumerate(shown)}
    missing = [cell.name for cell in cells if not cell.is_done]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{scenes.num} held-out pictures of the world {html.escape(scenes.world)}; measured with "
        f"{html.escape(scenes.setup)}; "
        "intervals are 95 % over pictures, widened to the range of the seeds. "
        + (f"<b>Missing: {html.escape(', '.join(missing))}.</b>" if missing else "No cell is missing.")
        + "</p>",
        _table(methods, own, values),
        "<h2>Beside what was there before</h2>" if relative else "",
        _table(methods, relative, values) if relative else "",
        "<h2>Training</h2>",
        cost_tables(cells, costs, headline, scenes.is_better_higher, goal),
        _curves(cells, colors, headline),
        "<h2>Passes, adherence, fidelity, variety</h2>",
        _scatters(drawn, values, headline, colors),
        "<h2>Pictures</h2>",
        _pictures(scenes, drawn),
    ]
    body = "\n".join(filter(None, parts))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(methods: Mapping[str, int], metrics: Sequence[str], values: Values) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("method", "passes", "seeds", *metrics))
    lines = []
    for method, passes in methods.items():
        found = [values.get((method, metric)) for metric in metrics]
        if any(found):
            seeds = max(len(row.seeds) for row in found if row)
            cells = "".join(f"<td>{_number(row)}</td>" for row in found)
            lines.append(f"<tr><td>{html.escape(method)}</td><td>{passes}</td><td>{seeds}</td>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _number(row: Row | None) -> str:
    return f"{row.value:.4g}<br><small>{row.low:.4g} to {row.high:.4g}</small>" if row else ""


def _curves(cells: Sequence[Cell], colors: Mapping[str, str], headline: str) -> str:
    """All that validation measured, by minutes of training: one picture each, the headline first."""
    histories = [(cell, cell.history()) for cell in cells]
    first = next((title for _, history in histories for title in history.curves), "")
    pictures = []
    for title in dict.fromkeys(title for _, history in histories for title in history.curves):
        lines = [
            (cell, [(seconds / 60, value) for seconds, value in history.curves[title]])
            for cell, history in histories
            if title in history.curves
        ]
        pictures.append(_curve(f"{headline if title == first else title} (val)", lines, colors))
    return "".join(pictures)


def _curve(title: str, lines: Sequence[tuple[Cell, list[tuple[float, float]]]], colors: Mapping[str, str]) -> str:
    place, frame = _frame([p for _, points in lines for p in points], "minutes of training", title)
    drawn = []
    for cell, points in lines:
        color = colors[cell.called]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        x, y = place(*points[-1])
        drawn.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        drawn.append(f'<text x="{x + 4:.1f}" y="{y:.1f}" font-size="11" fill="{color}">{html.escape(cell.told)}</text>')
    return frame.format("".join(drawn))


def _scatters(drawn: Sequence[Drawn], values: Values, headline: str, colors: Mapping[str, str]) -> str:
    """What a picture costs, what training costs, and what adherence costs in fidelity and in variety."""
    passes = {one.method: float(one.passes) for one in drawn if one.passes}  # those that a network drew
    minutes = {one.method: one.minutes for one in drawn if one.minutes is not None}
    measured = {
        metric: {method: values[method, metric].value for method in passes if (method, metric) in values}
        for metric in (headline, "frechet", "recall", "open entropy", "seed distance")
    }
    pairs = [
        (passes, "passes for a picture", headline), (passes, "passes for a picture", "frechet"),
        (minutes, "minutes of training", headline), (minutes, "minutes of training", "frechet"),
        *((measured[metric], metric, headline) for metric in ("frechet", "recall", "open entropy", "seed distance")),
    ]  # fmt: skip
    return "".join(_scatter(x, measured[y], x_title, y, colors) for x, x_title, y in pairs if len(x) > 1)


def _scatter(
    x_values: Mapping[str, float], y_values: Mapping[str, float], x_title: str, y_title: str, colors: Mapping[str, str]
) -> str:
    points = {method: (x, y_values[method]) for method, x in x_values.items()}
    place, frame = _frame(list(points.values()), x_title, y_title)
    drawn = []
    for method, point in points.items():
        (x, y), color, name = place(*point), colors[method], html.escape(method)
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
        drawn.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" font-size="11" fill="{color}">{name}</text>')
    return frame.format("".join(drawn))


def _frame(points, x_title: str, y_title: str):
    """(what maps a point into the picture, an SVG with axes and a place for more)."""
    width, height, left, bottom, right = 560, 320, 60, 36, 170
    (x_low, x_high), (y_low, y_high) = ((min(v), max(v)) for v in zip(*points, strict=True))
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (width - left - right) * (x - x_low) / x_span,
            height - bottom - (height - bottom - 24) * (y - y_low) / y_span,
        )

    low, base = left, height - bottom
    texts = [
        (left, height - 8, "start", f"{x_low:.3g}"),
        (width - right, height - 8, "end", f"{x_high:.3g}"),
        ((left + width - right) / 2, height - 8, "middle", x_title),
        (left - 6, base, "end", f"{y_low:.3g}"),
        (left - 6, 28, "end", f"{y_high:.3g}"),
        (left, 14, "start", y_title),
    ]
    labels = "".join(
        f'<text x="{x}" y="{y}" font-size="11" text-anchor="{anchor}">{html.escape(text)}</text>'
        for x, y, anchor, text in texts
    )
    axes = f'<path d="M{low},20 V{base} H{width - right}" stroke="#888" fill="none"/>'
    return place, f'<svg width="{width}" height="{height}">{axes}{labels}'.replace("{", "{{") + "{}</svg>"


def _pictures(scenes: Scenes, drawn: Sequence[Drawn]) -> str:
    """The same requests, every method's answers."""
    buffer = io.BytesIO()
    sheet(scenes, {one.method: one.drawings[0].images for one in drawn}).save(buffer, format="PNG")
    return f'<img alt="pictures" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
