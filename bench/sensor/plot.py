"""Line plots as SVG text: one x axis, one or more series, values written at the points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLOURS = ("#1b6ca8", "#c1502e", "#3a7d44", "#6d4c91")


def write_plot(
    path: Path, title: str, x_name: str, y_name: str, series: Mapping[str, Points], *, has_log_x: bool = False
) -> None:
    """Write a plot whose y axis begins at 0; ``has_log_x`` for values of several magnitudes."""
    xs = [x for points in series.values() for x, _ in points]
    top = max(y for points in series.values() for _, y in points) * 1.15 or 1.0
    scale = math.log10 if has_log_x else float
    low, high = scale(min(xs)) if has_log_x else 0.0, scale(max(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - low) / ((high - low) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, title, size=14),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name, anchor="middle"),
        _text(8, TOP - 6, y_name),
    ]
    for part in range(5):
        y = top * part / 4
        _, down = place(max(xs), y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, down + 4, _short(y), anchor="end"))
    for x in sorted(set(xs)):
        across, down = place(x, 0)
        parts.append(_text(across, down + 18, _short(x), anchor="middle"))
    for number, (name, points) in enumerate(series.items()):
        parts += _series(name, [place(*point) for point in points], points, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _series(name: str, places: Sequence[tuple[float, float]], points: Points, number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
    parts = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (across, down), (_, y) in zip(places, points, strict=True):
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(across, down - 8, _short(y), anchor="middle", size=10))
    return [*parts, _text(WIDTH - RIGHT + 12, TOP + 18 * number, name, colour=colour)]


def _text(
    across: float, down: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "black"
) -> str:
    return (
        f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _short(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
