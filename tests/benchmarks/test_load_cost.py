"""The parts of a start, measured on the bundled model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import load_cost
from benchmarks.load_cost import Cost, measure, print_cost
from qwen3_ray.config import DEMO_MODEL_DIR


def test_a_start_is_made_of_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    cost = measure(DEMO_MODEL_DIR, cold=False)
    labels = {label for label, *_ in (*load_cost.IMPORTS, *load_cost.PARTS)}
    assert cost.seconds.keys() == cost.core_seconds.keys() == labels
    assert 0 <= cost.other_s < cost.after_imports_s
    num_bytes = (DEMO_MODEL_DIR / "model.safetensors").stat().st_size
    assert num_bytes < cost.peak_anonymous_bytes < cost.peak_resident_bytes
    print_cost("demo", cost)
    assert capsys.readouterr().out.count("s of cores\n") == len(labels)


def test_what_a_kernel_calls_is_compiled_within_it() -> None:
    def events(*names: str) -> list[tuple[float, object]]:
        """One a second; a name begins when it is new, and ends when it comes again."""
        seen: set[str] = set()
        found: list[tuple[float, object]] = []
        for second, name in enumerate(names):
            dispatcher = SimpleNamespace(py_func=SimpleNamespace(__qualname__=name))
            data = {"dispatcher": dispatcher}
            found.append((float(second), SimpleNamespace(is_start=name not in seen, data=data)))
            seen ^= {name}
        return found

    recorded = events("outer", "inner", "inner", "outer", "alone", "alone", "outer", "outer")
    assert load_cost._compile_times(recorded) == {"outer": 4.0, "alone": 1.0}


def test_kernels_are_named_by_how_long_they_took(capsys: pytest.CaptureFixture[str]) -> None:
    print_cost("tiny", Cost(after_imports_s=3.0, kernels={"short": 0.5, "long": 2.0}))
    out = capsys.readouterr().out
    assert "2 kernels compiled in 2.5 s" in out
    assert out.index("long ") < out.index("short ")


def test_a_field_of_the_status_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    assert load_cost.status_bytes(status, "VmHWM") > 1 << 20
    assert load_cost.status_bytes("VmRSS:\t  12 kB\n", "VmRSS") == 12 * 1024
    assert load_cost.status_bytes("VmRSS:\t  12 kB\n", "VmHWM") == 0
