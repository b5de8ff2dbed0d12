"""Ranks that share a vocabulary choose what one rank with all logits does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.runner.device_rows import DeviceRows
from qwen3_ray.runner.philox import philox4x32
from qwen3_ray.runner.sampling_rows import NOTHING_ALLOWED, NUMERICAL_ERROR
from qwen3_ray.runner.triton_choice import choose
from qwen3_ray.runner.triton_shard_choice import choose_over_ranks
from qwen3_ray.testing_ranks import Call, LoneRank, run_in_turn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB_SIZE, NUM_VALID = 83, 79
CHUNK = 32
MASK = 0xFFFFFFFF


def make_rows(
    temperatures: Sequence[float], *, max_gaps: Sequence[float] | None = None
) -> DeviceRows:
    count = len(temperatures)

    def tensor(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    return DeviceRows(
        temperature=tensor(temperatures, torch.float32),
        max_gap=tensor(max_gaps or [math.inf] * count, torch.float32),
        top_k=tensor([0] * count, torch.int32),
        top_p=tensor([1.0] * count, torch.float32),
        seed=tensor([(-1) ** row * (row << 33 | 7) for row in range(count)], torch.int64),
        position=tensor([3 + 5 * row for row in range(count)], torch.int32),
        choice=tensor([row % 3 for row in range(count)], torch.int32),
    )


ROWS = make_rows(
    [0.0, 1.0, 0.3, 0.7, 1.5],
    max_gaps=[math.inf, math.inf, math.inf, 0.0, 2.5],
)


def make_logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What lies beyond the known ids is larger than all else."""
    logits = (2 * torch.randn(len(ROWS.temperature), VOCAB_SIZE)).to(dtype)
    logits[:, NUM_VALID:] = 1e4
    return logits.to(DEVICE)


def over_ranks(
    logits: torch.Tensor, rows: DeviceRows, size: int, *, chunk_size: int = CHUNK
) -> list[torch.Tensor]:
    """The tokens of each rank; a shard's last columns are no number."""
    shard_size = -(-VOCAB_SIZE // size)

    def run(tp: TPGroup) -> torch.Tensor:
        first_id = tp.rank * shard_size
        own = torch.full((len(logits), shard_size), math.nan, dtype=logits.dtype, device=DEVICE)
        part = logits[:, first_id : first_id + shard_size]
        own[:, : part.shape[1]] = part
        out = torch.full((len(logits),), -99, dtype=torch.int32, device=DEVICE)
        choose_over_ranks(own, rows, NUM_VALID, out, tp, first_id=first_id, chunk_size=chunk_size)
        return out

    return run_in_turn(size, run, device=DEVICE)


def on_one_rank(logits: torch.Tensor, rows: DeviceRows) -> torch.Tensor:
    out = torch.full((len(logits),), -99, dtype=torch.int32, device=DEVICE)
    choose(logits, rows, NUM_VALID, out, may_cut=False, chunk_size=CHUNK)
    return out


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, torch.float32), (2, torch.bfloat16), (3, torch.float32), (8, torch.float32)],
    ids=str,
)
def test_ranks_choose_what_one_rank_with_all_logits_does(size: int, dtype: torch.dtype) -> None:
    """To the last bit of the scores, wherever shards and chunks begin."""
    logits = make_logits(dtype)
    expected = on_one_rank(logits, ROWS)
    assert (expected >= 0).all()
    for tokens in over_ranks(logits, ROWS, size):
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize("chunk_size", [8, 128])
def test_chunks_change_no_token(chunk_size: int) -> None:
    logits = make_logits()
    expected = over_ranks(logits, ROWS, 3)[0]
    assert torch.equal(over_ranks(logits, ROWS, 3, chunk_size=chunk_size)[0], expected)


def gumbel(row: int, token_id: int) -> float:
    """By the definition, in float64."""
    seed = int(ROWS.seed[row])
    counter = (int(ROWS.position[row]), int(ROWS.choice[row]), 1, token_id // 4)
    word = philox4x32(counter, (seed & MASK, seed >> 32 & MASK))[token_id % 4]
    return -math.log(-math.log1p(-(word + 0.5) / 2**32))


def test_tokens_are_those_of_the_definition() -> None:
    """The largest logit, or the largest sum of logit by temperature and Gumbel noise."""
    logits = make_logits()
    tokens = over_ranks(logits, ROWS, 4)[0].tolist()
    for row, temperature in enumerate(ROWS.temperature.tolist()):
        known = logits[row, :NUM_VALID].double().cpu().numpy()
        scores = known
        if temperature > 0:
            noise = np.array([gumbel(row, token_id) for token_id in range(NUM_VALID)])
            scores = known / temperature + noise
            scores[known < known.max() - float(ROWS.max_gap[row])] = -math.inf
        assert tokens[row] == int(scores.argmax())
    assert tokens[3] == int(logits[3, :NUM_VALID].argmax())  # `min_p` 1 leaves one


def test_the_lowest_of_equal_ids_wins_on_whichever_rank() -> None:
    logits = torch.zeros(4, VOCAB_SIZE, device=DEVICE)
    for row, ids in enumerate([(25, 50, 78), (50, 25), (77, 3)]):
        logits[row, list(ids)] = 5.0
    logits[3, :20] = -1.0
    logits[3, 20] = -0.0  # the last one of rank 0
    for tokens in over_ranks(logits, make_rows([0.0] * 4), 4):
        assert tokens.tolist() == [25, 25, 3, 20]


@pytest.mark.parametrize(
    ("bad", "token_id"), [(math.nan, NUM_VALID - 1), (math.inf, 0), (-math.inf, 50)]
)
def test_a_logit_that_is_no_number_is_an_error_on_all_ranks(bad: float, token_id: int) -> None:
    logits = make_logits()
    expected = on_one_rank(logits, ROWS)
    for row in (0, 1):  # one is drawn, one is not
        logits[row, token_id] = bad
        expected[row] = NUMERICAL_ERROR
    for tokens in over_ranks(logits, ROWS, 2):
        assert torch.equal(tokens, expected)


def test_without_any_id_nothing_is_allowed() -> None:
    out = torch.full((2,), -99, dtype=torch.int32, device=DEVICE)
    logits = torch.zeros(2, 8, device=DEVICE)
    choose_over_ranks(logits, make_rows([0.0, 1.0]), 0, out, TPGroup.single(), first_id=0)
    assert out.tolist() == [NOTHING_ALLOWED] * 2


def test_ranks_tell_each_other_eight_bytes_a_row_twice() -> None:
    lone = LoneRank(1, 4)
    logits = make_logits()[:, :21].contiguous()
    out = torch.zeros(len(logits), dtype=torch.int32, device=DEVICE)
    choose_over_ranks(logits, ROWS, NUM_VALID, out, lone.group(), first_id=21)
    assert lone.calls == [Call("all_gather", 8 * len(logits))] * 2


def test_a_step_of_no_rows_tells_nothing() -> None:
    lone = LoneRank(0, 2)
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    choose_over_ranks(
        torch.zeros(0, 8, device=DEVICE), make_rows([]), 16, empty, lone.group(), first_id=0
    )
    assert lone.calls == []
