"""Every kernel compiles for sm_90 and keeps to what one of its processors has."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.gpu_compile.compile_specimens import ENGINE

MAX_SHARED_BYTES = 227 << 10
"""What one program may have of a processor's shared memory on sm_90."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    # Interpreted kernels cannot be compiled, and which they are is settled when Triton loads.
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_compile.compile_specimens", "--json"],
        cwd=ENGINE.parent,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def test_every_kernel_has_a_specimen(compiled: dict[str, Any]) -> None:
    missing = set(compiled["kernels"]) - {each["kernel"] for each in compiled["specimens"]}
    assert compiled["kernels"]
    assert not missing


def test_every_specimen_compiles_without_spills_within_shared_memory(
    compiled: dict[str, Any],
) -> None:
    wrong = [
        each
        for each in compiled["specimens"]
        if each["error"] or each["spilled_bytes"] or each["shared_bytes"] > MAX_SHARED_BYTES
    ]
    assert not wrong


def test_linears_multiply_by_one_instruction_in_each_way(compiled: dict[str, Any]) -> None:
    """On another shape of it the bits of a row could depend on how many rows there are."""
    products = {
        each["products"]
        for each in compiled["specimens"]
        if each["kernel"].endswith("triton_linear.multiply_tiles") and "fp32" not in each["name"]
    }
    assert products == {"wgmma m64n128k16"}
