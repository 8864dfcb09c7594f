"""What validation measured over training as a small picture, drawn without a plotting library."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from jdmctl.training.records import read_records

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 480, 200, 70, 24, 24


def draw_curve(metrics: Path, target: Path) -> None:
    """A panel for each headline and each thing watched on validation, by steps of the last stage.

    Red lines stand where something was wrong.
    """
    panels, alarms = read_curves(metrics)
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT * len(panels)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (title, points) in enumerate(panels.items()):
        top, bottom = number * _HEIGHT + _TOP, (number + 1) * _HEIGHT - _BOTTOM
        low, high = min(points.values()), max(points.values())
        span, last = (high - low) or 1.0, max(points) or 1

        def place(step: int, value: float) -> tuple[float, float]:
            x = _LEFT + (_WIDTH - _LEFT - 12) * step / last  # noqa: B023  (used within the turn)
            return x, bottom - (bottom - top) * (value - low) / span  # noqa: B023

        pen.line([(_LEFT, top), (_LEFT, bottom), (_WIDTH - 12, bottom)], "black")
        pen.text((_LEFT, top - 18), f"{title} on validation", "black", font)
        pen.text((4, top - 6), f"{high:.4g}", "black", font)
        pen.text((4, bottom - 8), f"{low:.4g}", "black", font)
        pen.text((_LEFT, bottom + 4), "0", "black", font)
        pen.text((_WIDTH - 50, bottom + 4), str(last), "black", font)
        for step in alarms:
            x = place(step, low)[0]
            pen.line([(x, top), (x, bottom)], "red")
        pen.line([place(step, value) for step, value in sorted(points.items())], "navy", 2)
    sheet.save(target)


def read_curves(metrics: Path) -> tuple[dict[str, dict[int, float]], list[int]]:
    """Title -> step -> value, and the steps of alarms; what a resumed run did again replaces what was before."""
    found = [record for record in read_records(metrics) if record["event"] == "validation"]
    panels: dict[str, dict[int, float]] = {}
    alarmed: dict[int, bool] = {}
    for record in found:
        if record["stage"] == found[-1]["stage"]:
            alarmed[record["step"]] = record.get("alarm", 0) > 0
            for title, value in (record["adherence"] | record.get("watched", {})).items():
                panels.setdefault(title, {})[record["step"]] = value
    return panels, [step for step, rang in alarmed.items() if rang]
