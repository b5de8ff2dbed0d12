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


def test_no_result_of_a_product_is_read_before_it_is_there(compiled: dict[str, Any]) -> None:
    """Nor waited for more often than need be; ptxas sees to the former by way of the latter."""
    assert not [each for each in compiled["specimens"] if each["remarks"]]


def test_no_warp_reads_what_another_has_overwritten(compiled: dict[str, Any]) -> None:
    assert not [each for each in compiled["specimens"] if each["reread"]]


@pytest.mark.parametrize(
    ("kernel", "instruction"),
    [
        ("triton_linear.multiply_tiles", "wgmma m64n128k16"),
        ("triton_experts._multiply_gate_up", "wgmma m64n128k16"),
        ("triton_experts._multiply_down", "wgmma m64n128k16"),
        ("triton_attention.attend", "wgmma m64n128k16, wgmma m64n64k16"),
    ],
)
def test_rows_are_multiplied_by_one_instruction_in_each_way(
    kernel: str, instruction: str, compiled: dict[str, Any]
) -> None:
    """On another shape of it the bits of a row could depend on how many rows there are."""
    products = {each["products"] for each in exact_specimens(kernel, compiled)}
    assert products == {instruction}


@pytest.mark.parametrize("kernel", ["triton_attention.attend", "triton_moe._choose"])
def test_rows_are_summed_up_in_one_order_in_each_way(kernel: str, compiled: dict[str, Any]) -> None:
    """Which of a row's numbers a thread has decides the order; several kernels must agree."""
    orders = {tuple(each["sums"]) for each in exact_specimens(kernel, compiled)}
    assert len(orders) == 1
    assert () not in orders


def exact_specimens(kernel: str, compiled: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of one kernel between which a row's bits must not differ."""
    found = [each for each in compiled["specimens"] if each["kernel"].endswith(kernel)]
    if kernel.endswith("attend"):
        found = [each for each in found if each["name"].startswith("exact")]
    found = [each for each in found if "fp32" not in each["name"]]
    assert len(found) > 1
    return found
