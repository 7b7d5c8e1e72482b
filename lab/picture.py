"""A picture of a load: every visit's latency, the failures of every second, and what was done to the site when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

from lab.traffic import Mark, Visit

WIDTH, LEFT, RIGHT = 1100, 70, 20
TOP, LATENCY_HEIGHT, GAP, FAILURE_HEIGHT = 150, 300, 30, 90
LOWEST_MS, HIGHEST_MS = 1.0, 10_000.0
COLOURS = {
    "page": "#4c78a8",
    "order": "#0b6e4f",
    "again": "#8fbc5a",
    "read": "#72b7b2",
    "report": "#b279a2",
    "upload": "#e0a030",
}
FAILED = "#d1242f"


def across(at: float, seconds: float) -> float:
    """Where a moment (seconds from the start) lies on the page."""
    return LEFT + (WIDTH - LEFT - RIGHT) * at / max(seconds, 1e-9)


def height(milliseconds: float) -> float:
    """Where a latency lies, on a logarithmic scale."""
    inside = min(max(milliseconds, LOWEST_MS), HIGHEST_MS)
    share = math.log10(inside / LOWEST_MS) / math.log10(HIGHEST_MS / LOWEST_MS)
    return TOP + LATENCY_HEIGHT * (1 - share)


def svg(visits: list[Visit], marks: Iterable[Mark], seconds: float, title: str) -> str:
    """The picture as SVG text."""
    below = TOP + LATENCY_HEIGHT + GAP
    total = below + FAILURE_HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{total}" fill="#fff"/>',
        text(LEFT, 24, title, size=16, weight="bold"),
        *legend(),
        *scales(seconds, below),
        *marked(marks, seconds, below + FAILURE_HEIGHT),
        *dots(visits, seconds),
        *bars(visits, seconds, below),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def text(x: float, y: float, words: str, size: int = 12, weight: str = "normal", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="#333" {more}>{escape(words)}</text>'


def legend() -> Iterator[str]:
    x = LEFT
    for kind, colour in {**COLOURS, "failed": FAILED}.items():
        yield f'<circle cx="{x + 5}" cy="40" r="4" fill="{colour}"/>'
        yield text(x + 14, 44, kind)
        x += 90


def scales(seconds: float, below: float) -> Iterator[str]:
    for milliseconds in (1, 10, 100, 1000, 10_000):
        y = height(milliseconds)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>'
        words = f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds // 1000} s"
        yield text(LEFT - 8, y + 4, words, more='text-anchor="end"')
    step = next((step for step in (5, 10, 30, 60, 120, 300) if seconds / step <= 15), 600)
    for second in range(0, int(seconds) + 1, step):
        yield text(across(second, seconds), below + FAILURE_HEIGHT + 18, f"{second} s", more='text-anchor="middle"')
    yield text(LEFT - 8, below + 12, "failed", more='text-anchor="end"')
    yield text(LEFT - 8, below + 26, "per s", more='text-anchor="end"')
    bottom = below + FAILURE_HEIGHT
    yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#999"/>'


def marked(marks: Iterable[Mark], seconds: float, bottom: float) -> Iterator[str]:
    """A line and a slanted label for everything that was done."""
    for mark in marks:
        x = across(mark.at, seconds)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="#888" stroke-dasharray="3 3"/>'
        yield text(x + 3, TOP - 12, mark.what, size=11, more=f'transform="rotate(-35 {x + 3:.1f} {TOP - 12})"')


def dots(visits: list[Visit], seconds: float) -> Iterator[str]:
    for visit in visits:
        colour = FAILED if visit.failure else COLOURS.get(visit.kind, "#333")
        x, y = across(visit.due, seconds), height(1000 * visit.seconds)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if visit.failure else 1.8}" fill="{colour}" fill-opacity="0.65"/>'


def bars(visits: list[Visit], seconds: float, below: float) -> Iterator[str]:
    """How many visits of each second failed."""
    failed = Counter(int(visit.due) for visit in visits if visit.failure)
    most = max(failed.values(), default=1)
    wide = max(across(1, seconds) - across(0, seconds) - 1, 1)
    for second, count in failed.items():
        tall = FAILURE_HEIGHT * count / most
        x, y = across(second, seconds), below + FAILURE_HEIGHT - tall
        yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{FAILED}"/>'
        yield text(x + wide / 2, y - 3, str(count), size=10, more='text-anchor="middle"')
