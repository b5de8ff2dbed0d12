"""Least time that work can take: bytes over bandwidth or operations over rate, the longer.

Weights are read once a step, keys and values once for each token; activations count nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.gpu.workload import Job
from benchmarks.limits import KV_BYTES, WEIGHT_BYTES, Machine, ModelCost


def decode_s(
    cost: ModelCost,
    machine: Machine,
    *,
    num_seqs: int,
    context_len: float,
    linear_bytes: int = WEIGHT_BYTES,
    num_ranks: int = 1,
) -> float:
    """A step in which each of `num_seqs` sequences gets one token, on one of `num_ranks` ranks.

    The head keeps two bytes a weight whatever the other linears have. What ranks say to each other
    counts nothing. Operations are those of 16-bit weights.
    """
    smaller = (WEIGHT_BYTES - linear_bytes) * cost.layer_params
    num_bytes = cost.decode_bytes(num_seqs, context_len) - smaller
    operations = cost.decode_operations(num_seqs, context_len)
    return max(num_bytes / machine.read_bytes_per_s, operations / machine.flops) / num_ranks


def workload_s(cost: ModelCost, machine: Machine, jobs: Sequence[Job]) -> float:
    """All jobs to their ends: prompts first, computed at the full rate, then all decode together.

    The prompt's step gives a job its first output token.
    """
    rates = [cost.prefill_operations(len(job.prompt)) / machine.flops for job in jobs]
    decodes = (
        decode_s(cost, machine, num_seqs=num_seqs, context_len=context_len)
        for num_seqs, context_len in _decode_steps(jobs)
    )
    return sum(rates) + sum(decodes)


def kv_bytes(cost: ModelCost, jobs: Sequence[Job]) -> float:
    """The most that keys and values of jobs that run together take."""
    tokens = (num_seqs * context_len for num_seqs, context_len in _decode_steps(jobs))
    return max(tokens) * cost.kv_values_per_token * KV_BYTES


def _decode_steps(jobs: Sequence[Job]) -> Iterator[tuple[int, float]]:
    """Of each step, how many jobs it continues and their mean length."""
    for done in range(1, max(job.output_len for job in jobs)):
        lens = [len(job.prompt) + done for job in jobs if job.output_len > done]
        yield len(lens), sum(lens) / len(lens)
