"""A comparison as a bar chart: how much of what the machine can do each contender reaches."""

from __future__ import annotations

from benchmarks import svg
from benchmarks.comparison import Comparison

WIDTH, LEFT, RIGHT, TOP = 860, 110, 150, 64
BAR, GAP, CASE_GAP = 13, 2, 14
GRID_STEP = 0.25


def render(comparison: Comparison) -> str:
    """An SVG file. A full bar is the limit of the case; beside each bar stand tokens a second."""
    names = sorted(
        {sample.contender for sample in comparison.samples},
        key=lambda name: (name != comparison.ours, name),
    )
    colors = dict(zip(names, svg.COLORS, strict=False))
    bars, y = [], float(TOP)
    for case in comparison.cases():
        top = y
        limit = comparison.limits[case.name]
        for name in comparison.contenders(case):
            rate = comparison.median(name, case, "tokens_per_s") or 0.0
            width = rate / limit * _full_width()
            bars += [
                svg.rect(LEFT, y, width, BAR, colors[name]),
                svg.text(LEFT + width + 4, y + BAR - 3, f"{rate:.1f}", size=10),
            ]
            y += BAR + GAP
        bars.append(svg.text(LEFT - 8, (top + y) / 2 + 4, case.name, anchor="end"))
        y += CASE_GAP
    title = f"Tokens a second, as a share of the machine's limit: {comparison.machine['cpu']}, "
    title += f"{comparison.machine['cores']} cores, {comparison.date}, {comparison.commit}"
    parts = [svg.text(12, 22, title, size=14), *_legend(colors), *_grid(y), *bars]
    return svg.document(WIDTH, int(y) + 16, parts)


def _full_width() -> int:
    return WIDTH - LEFT - RIGHT


def _grid(bottom: float) -> list[str]:
    parts = []
    for index in range(round(1 / GRID_STEP) + 1):
        share = index * GRID_STEP
        x = LEFT + share * _full_width()
        parts += [
            svg.line([(x, TOP - 6), (x, bottom)], svg.GRID),
            svg.text(x, bottom + 12, f"{share:.0%}", anchor="middle", size=10),
        ]
    return parts


def _legend(colors: dict[str, str]) -> list[str]:
    parts, x = [], 12.0
    for name, color in colors.items():
        parts += [svg.rect(x, 34, 12, 12, color), svg.text(x + 16, 44, name)]
        x += 40 + 7 * len(name)
    return parts
