"""Records as text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.record import Record, Row, Value


def render(records: Sequence[Record]) -> str:
    """All tables, then what was left out, then what failed."""
    parts = [
        f"{title}\n{table(rows)}" for record in records for title, rows in record.tables.items()
    ]
    skipped = [f"{what}: {why}" for record in records for what, why in record.skipped.items()]
    if skipped:
        parts.append("Left out\n" + "\n".join(skipped))
    parts.append(_verdict(records))
    return "\n\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Columns in the order of their first appearance; numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    numeric = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [names, *cells]
    ]
    return "\n".join(lines)


def _text(value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if type(value) is int else str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.2e}" if abs(value) < 1e-2 else f"{value:,.0f}"


def _verdict(records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        num_passed = sum(check.passed for check in record.checks)
        state = "FAILED" if record.failed else "ok"
        lines.append(
            f"{record.name}: {state}, {num_passed} of {len(record.checks)} checks, "
            f"{record.seconds:.0f} s"
        )
        lines += [f"  {check.name}: {check.detail}" for check in record.checks if not check.passed]
        if record.problem:
            lines.append(f"  {record.problem}")
    return "\n".join(lines)
