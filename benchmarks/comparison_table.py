"""A comparison as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.comparison import Comparison, Entry
from benchmarks.peers.work import Case

GB = 1e9
DISTURBED_CORES = 0.3
"""Foreign use of the machine from which on a line is marked."""
HEAD = (
    "case", "contender", "weights", "tokens/s", "of limit", "to best peer", "TTFT s", "to best",
    "ITL ms", "to best", "rounds", "foreign",
)  # fmt: skip
FACTS_HEAD = (
    "phase", "contender", "version", "start s", "load s", "peak RSS GB", "peak anon GB",
    "idle cores",
)  # fmt: skip


def render(comparison: Comparison) -> str:
    """Both tables, each line of the first naming a case and a contender."""
    machine = comparison.machine
    flags = ", ".join(map(str, _list(machine["flags"])))
    place = f"{machine['cpu']}, {machine['cores']} cores, {flags}"
    lines = [f"{comparison.date}  commit {comparison.commit}  {place}", *_ceilings(comparison)]
    rows = [row for case in comparison.cases() for row in _case_rows(comparison, case)]
    facts = [_facts_row(entry) for entry in comparison.entries if entry.facts.version]
    problems = [
        f"{entry.name} ({entry.phase}): {entry.problem}"
        for entry in comparison.entries
        if entry.problem
    ]
    notes = [f"! more than {DISTURBED_CORES} cores were used by others: repeat such a run"]
    return "\n".join(
        [*lines, "", *aligned([HEAD, *rows]), "", *aligned([FACTS_HEAD, *facts]), "",
         *(notes if any(row[-1].endswith("!") for row in rows) else []), *problems]
    ).rstrip()  # fmt: skip


def _ceilings(comparison: Comparison) -> Iterator[str]:
    """What the machine can do, and what is more of use for prefill than its limit."""
    if not comparison.ceilings:
        return
    read, multiply_add, gemm = (
        max(ceiling[key] for ceiling in comparison.ceilings)
        for key in ("read_bytes_per_s", "multiply_adds_flops", "gemm_flops")
    )
    yield (
        f"read {read / GB:.1f} GB/s, multiply-add {multiply_add / GB:.0f} GFLOP/s, "
        f"matrix product {gemm / GB:.0f} GFLOP/s (best of the rounds)"
    )
    prefill = Case("prefill")
    rate = comparison.median(comparison.ours, prefill, "tokens_per_s")
    if rate is not None:
        share = rate / comparison.limits[prefill.name] * max(multiply_add, gemm) / gemm
        yield f"prefill of {comparison.ours} runs at {share:.0%} of that matrix product's rate"


def _case_rows(comparison: Comparison, case: Case) -> Iterator[tuple[str, ...]]:
    weights = {entry.name: entry.weights for entry in comparison.entries}
    for name in comparison.contenders(case):
        rate = comparison.median(name, case, "tokens_per_s") or 0.0
        limit = comparison.limits.get(case.name)
        foreign = comparison.foreign_cores(name, case)
        yield (
            case.name,
            name,
            weights[name],
            f"{rate:.1f}",
            f"{rate / limit:.0%}" if limit else "",
            _ratio(comparison.ratio(name, case, "tokens_per_s")),
            _number(comparison.median(name, case, "ttft_s"), "{:.2f}"),
            _ratio(comparison.ratio(name, case, "ttft_s")),
            _number(comparison.median(name, case, "itl_s"), "{:.0f}", 1_000),
            _ratio(comparison.ratio(name, case, "itl_s")),
            str(comparison.num_rounds(name, case)),
            f"{foreign:.2f}" + ("!" if foreign > DISTURBED_CORES else ""),
        )


def _facts_row(entry: Entry) -> tuple[str, ...]:
    facts = entry.facts
    return (
        entry.phase,
        entry.name,
        facts.version,
        _median(facts.start_s),
        _median(facts.load_s),
        f"{facts.memory.rss / GB:.2f}",
        f"{facts.memory.anonymous / GB:.2f}",
        _number(facts.idle_cores, "{:.2f}"),
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell: the first two to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}" if values else ""


def _ratio(value: float | None) -> str:
    return _number(value, "{:.2f}x")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
