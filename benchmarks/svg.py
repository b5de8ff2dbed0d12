"""Just enough SVG for charts, written by hand: no drawing library is needed."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

COLORS = ("#c2410c", "#1d4ed8", "#0f766e", "#a16207", "#7e22ce", "#475569", "#be123c", "#15803d")
"""Of the series, in their order; the first is ours."""
INK, GRID = "#1f2937", "#d1d5db"


def document(width: int, height: int, parts: Sequence[str]) -> str:
    """A whole file."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, content: str, *, anchor: str = "start", size: int = 12) -> str:
    """One line; `anchor` is start, middle or end."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">'
        f"{escape(content)}</text>"
    )


def rect(x: float, y: float, width: float, height: float, color: str) -> str:
    """Filled."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{height:.1f}" '
        f'fill="{color}"/>'
    )


def line(points: Sequence[tuple[float, float]], color: str, *, dashed: bool = False) -> str:
    """Through all points."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="1.5"{dashes}/>'


def dot(x: float, y: float, color: str, *, filled: bool = True) -> str:
    """A point of a line."""
    fill = color if filled else "white"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{fill}" stroke="{color}"/>'
