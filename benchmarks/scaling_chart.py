"""Step time against context length, a line for each batch, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks import svg

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 460, 60, 110, 60, 40

Series = Mapping[int, Sequence[tuple[int, float, float]]]
"""Batch -> (context length, measured seconds, limit in seconds)."""


def render(series: Series, place: str) -> str:
    """An SVG file; both axes are logarithmic, limits are dashed."""
    points = [point for line in series.values() for point in line]
    x_low, x_high = _octaves([length for length, _, _ in points])
    y_low, y_high = _octaves([1000 * s for _, *both in points for s in both])

    def at(length: float, milliseconds: float) -> tuple[float, float]:
        across = (math.log2(length) - x_low) / (x_high - x_low)
        up = (math.log2(milliseconds) - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [
        svg.text(12, 22, f"Decode step against context length and batch: {place}", size=14),
        svg.text(12, 42, "ms of a step; dashed: bytes / bandwidth or operations / rate"),
    ]
    for exponent in range(y_low, y_high + 1):
        left, right = at(2**x_low, 2**exponent), at(2**x_high, 2**exponent)
        parts += [
            svg.line([left, right], svg.GRID),
            svg.text(left[0] - 6, left[1] + 4, f"{2.0**exponent:g}", anchor="end", size=10),
        ]
    for exponent in range(x_low, x_high + 1):
        x, y = at(2**exponent, 2**y_low)
        parts.append(svg.text(x, y + 16, f"{2**exponent:,}", anchor="middle", size=10))
    for index, (num_seqs, line) in enumerate(series.items()):
        color = svg.COLORS[index % len(svg.COLORS)]
        measured = [at(length, 1000 * seconds) for length, seconds, _ in line]
        limits = [at(length, 1000 * limit) for length, _, limit in line]
        parts += [
            svg.line(limits, color, dashed=True),
            *(svg.dot(x, y, color, filled=False) for x, y in limits),
            svg.line(measured, color),
            *(svg.dot(x, y, color) for x, y in measured),
            svg.text(measured[-1][0] + 8, measured[-1][1] + 4, f"batch {num_seqs}", size=11),
        ]
    return svg.document(WIDTH, HEIGHT, parts)


def _octaves(values: Sequence[float]) -> tuple[int, int]:
    """Powers of two around all values."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    return low, max(high, low + 1)
