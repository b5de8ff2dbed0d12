"""Tokens chosen by Triton kernels: the kept set exactly, draws by their frequencies."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.runner import reference_sampling
from qwen3_ray.runner.device_rows import DeviceRows, device_rows
from qwen3_ray.runner.philox import philox4x32
from qwen3_ray.runner.sampling_rows import (
    NO_EDITS,
    NOTHING_ALLOWED,
    NUMERICAL_ERROR,
    Records,
    SamplingRowsBuilder,
    packed_row,
)
from qwen3_ray.runner.triton_choice import choose, take_survey
from qwen3_ray.runner.triton_cut import Border, find_border
from qwen3_ray.runner.triton_logits import chunks_of
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import Context, keep
from tests.qwen3_ray.runner.sampling_rig import Logits, logit_rows, make_request

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = 32
"""A chunk, so that rows of a few hundred logits have several."""
PADDING = np.float32([np.nan, 1e38, np.inf])
"""Behind the known ids, where nobody looks."""


def rows_of(*params: SamplingParams, position: int = 5) -> Records:
    """One row for each."""
    builder = SamplingRowsBuilder(num_words=1)
    for one in params:
        row = packed_row(make_request(Context(replace(one, seed=one.seed or 0))))
        builder.sample(row, position, NO_EDITS)
    return builder.build().rows


def on_device(logits: Logits) -> torch.Tensor:
    """[num_rows, num_tokens + 3]."""
    padding = np.tile(PADDING, (len(logits), 1))
    return torch.from_numpy(np.concatenate((logits, padding), axis=1)).to(DEVICE)


def chosen(
    logits: Logits, rows: Records | DeviceRows, *, chunk_size: int = SMALL, **how: bool
) -> list[int]:
    out = torch.full((len(logits),), -77, dtype=torch.int32, device=DEVICE)
    if not isinstance(rows, DeviceRows):
        rows = device_rows(rows, DEVICE)
    choose(on_device(logits), rows, logits.shape[1], out, chunk_size=chunk_size, **how)
    return out.tolist()


def kept_ids(logits: Logits, rows: Records, chunk_size: int = SMALL) -> list[set[int]]:
    """What the border and `min_p` leave of each row."""
    num_tokens = logits.shape[1]
    given, columns = on_device(logits), device_rows(rows, DEVICE)
    chunks = chunks_of(num_tokens, chunk_size)
    border = Border.empty(len(rows), DEVICE)
    survey = take_survey(given, num_tokens, chunks, is_edited=False)
    find_border(given, columns, num_tokens, survey, chunks, border)
    x, ids = torch.from_numpy(logits), torch.arange(num_tokens)
    lowest, last_id = border.lowest.cpu()[:, None], border.last_id.cpu()[:, None]
    is_kept = (x > lowest) | ((x == lowest) & (ids <= last_id))
    gap = torch.from_numpy(rows["max_gap"].astype(np.float32)).double()[:, None]
    is_kept &= x.double() >= x.double().amax(1, keepdim=True) - gap
    return [set(ids[row].tolist()) for row in is_kept]


def by_sorting(logits: Logits, rows: Records) -> list[set[int]]:
    """The same, by the reference."""
    ordered, order = torch.from_numpy(logits).sort(dim=1, descending=True, stable=True)
    weights = reference_sampling.kept_weights(ordered, rows)
    # A weight that is too small for float64 is kept, too, where `top_k` alone cuts.
    top_k, top_p = rows["top_k"], rows["top_p"]
    kept = []
    for row in range(len(logits)):
        num = int((weights[row] > 0).sum())
        if top_p[row] == 1:
            gap = ordered[row].double() >= ordered[row, 0].double() - rows["max_gap"][row]
            num = int(gap.sum()) if top_k[row] <= 0 else min(int(gap.sum()), top_k[row])
        kept.append(set(order[row, :num].tolist()))
    return kept


@pytest.mark.parametrize(
    ("chunk_size", "dtype"),
    [(8, torch.float32), (64, torch.bfloat16), (32, torch.float16)],
    ids=str,
)
def test_greedy_takes_the_largest_and_the_lowest_id_of_equals(
    chunk_size: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(6, 50, generator=generator) * 2).round().to(dtype)
    logits[4] = -0.0
    logits[4, 3] = 0.0
    out = torch.full((6,), -77, dtype=torch.int32, device=DEVICE)
    rows = device_rows(rows_of(*[SamplingParams(temperature=0, top_k=3)] * 6), DEVICE)
    choose(logits.to(DEVICE), rows, 50, out, chunk_size=chunk_size)
    x = logits.float()
    expected = [(row == row.max()).nonzero()[0].item() for row in x]
    assert out.tolist() == expected
    assert len(set(expected)) > 3


CASES: list[tuple[list[float], dict[str, float], set[int]]] = [
    ([1.0, 2.0, 3.0, 4.0], {"top_k": 2}, {2, 3}),
    ([1.0, 1.0, 1.0, 1.0], {"top_k": 3}, {0, 1, 2}),
    ([2.0, 5.0, 2.0, 2.0], {"top_k": 2}, {0, 1}),
    ([-1.0, -2.0, -3.0], {"top_k": 1}, {0}),
    ([1.0, 2.0], {"top_k": 5}, {0, 1}),
    ([0.0] * 10, {"top_p": 0.3}, {0, 1, 2}),
    ([0.0] * 10, {"top_p": 0.31}, {0, 1, 2, 3}),
    ([9.0, 0.0, 0.0], {"top_p": 0.5}, {0}),
    ([0.0, 0.0, 0.0, 0.0], {"top_k": 2, "top_p": 0.5}, {0}),  # of what top_k left
    ([0.0, 0.0, -0.0], {"top_k": 2}, {0, 1}),
    ([-0.0, 0.0, 0.0], {"top_k": 2}, {0, 1}),
    ([1.0, 2.0, 3.0], {"top_p": 1e-9}, {2}),
    ([3.0, 3.0, 3.0], {"top_p": 1e-60}, {0}),
    ([3.0, 1.0, 3.0], {"min_p": 1.0, "top_k": 1}, {0}),
    ([0.0, 0.0, -20.0], {"min_p": 0.01, "top_p": 0.5}, {0}),
    ([0.0] * 200, {"top_k": 3}, {0, 1, 2}),
    ([0.0] * 200, {"top_k": 150}, set(range(150))),
    ([0.0] * 200, {"top_k": 9, "top_p": 0.34}, {0, 1, 2, 3}),
    ([0.0, 1.0] * 50, {"top_k": 51, "top_p": 1e-6}, {1}),
    ([0.0, 1.0] * 50, {"top_k": 52}, {*range(1, 100, 2), 0, 2}),
    ([0.0] * 10 + [-1.0] * 90, {"top_k": 20, "top_p": 0.6}, set(range(10))),  # far above top_k's
    ([-3e38, 3e38, 0.0, -3e38], {"top_k": 3}, {0, 1, 2}),
    ([1e-45, 0.0, -1e-45, -1.0], {"top_k": 2}, {0, 1}),
    ([1.0, 1.0000001, 0.9999999], {"top_k": 2}, {0, 1}),
]


@pytest.mark.parametrize(("logits", "fields", "kept"), CASES)
def test_exactly_the_right_tokens_are_kept(
    logits: list[float], fields: dict[str, float], kept: set[int]
) -> None:
    row = np.array([logits], np.float32)
    assert kept_ids(row, rows_of(SamplingParams(temperature=2, **fields))) == [kept]


FIELDS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([1e-300, 1e-3, 0.3, 1.0, 2.0]),
        "top_k": st.one_of(st.just(0), st.integers(1, 8), st.integers(1, 300)),
        "top_p": st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.0, 1e-9, 0.01, 0.3, 1.0]),
    }
)


@settings(max_examples=40, deadline=None)
@given(row=logit_rows(max_size=260), fields=FIELDS)
def test_kept_is_what_sorting_keeps(row: Logits, fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    if params.top_k == 0 and params.top_p == 1:
        return  # no border is searched for
    if keep(dict(enumerate(map(float, row))), params).is_close:
        return  # rounding may decide
    rows = rows_of(params)
    assert kept_ids(row[None], rows, chunk_size=64) == by_sorting(row[None], rows)


def test_the_border_of_a_wide_row_is_exact() -> None:
    """With more candidates than one block of the last kernel has."""
    logits = np.random.default_rng(0).normal(size=(7, 1500), scale=3).astype(np.float32)
    logits[:, ::2] = np.round(logits[:, ::2])
    logits[1] = 0.25
    logits[2, 7] = 1000
    logits[3] = np.random.default_rng(1).normal(size=1500, scale=1e-4) + 2
    rows = rows_of(
        SamplingParams(top_k=700, top_p=0.9),
        SamplingParams(top_k=601, top_p=0.5),
        SamplingParams(top_k=900),
        SamplingParams(top_p=0.777),
        SamplingParams(temperature=0.01, top_p=0.999),
        SamplingParams(temperature=2, top_k=1400, min_p=1e-3, top_p=0.95),
        SamplingParams(top_k=50),
    )
    kept = kept_ids(logits, rows, chunk_size=512)
    assert kept == by_sorting(logits, rows)
    assert [len(ids) for ids in kept][1] == 301
    assert len(kept[3]) > 1000
    assert kept[3:4] == kept_ids(logits[3:4], rows[3:4], chunk_size=2048)


def test_a_token_depends_neither_on_other_rows_nor_on_chunks() -> None:
    generator = np.random.default_rng(3)
    logits = (generator.normal(size=(8, 90)) * 2).astype(np.float32)
    logits[5, 8] = np.nan
    params = [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=-5, temperature=0.7, top_k=20, top_p=0.9),
        SamplingParams(seed=3, min_p=0.1),
        SamplingParams(seed=2**62, top_p=0.5),
        SamplingParams(seed=5),
        SamplingParams(seed=6, top_k=100),
        SamplingParams(seed=7, temperature=2),
    ]
    rows = rows_of(*params)
    together = chosen(logits, rows)
    assert together[5] == NUMERICAL_ERROR
    assert len(set(together)) > 5
    assert chosen(logits, rows, chunk_size=64) == together
    for order in ([2], [4], [7, 0, 2, 1]):
        assert chosen(logits[order], rows[order]) == [together[index] for index in order]
    uncut = [0, 1, 3, 5, 7]
    assert chosen(logits[uncut], rows[uncut], may_cut=False) == [together[i] for i in uncut]
    assert chosen(logits, rows_of(*params, position=6)) != together


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_not_finite_or_all_banned(bad: float, temperature: float) -> None:
    logits = np.zeros((4, 70), np.float32)
    logits[1, 69] = logits[2, 0] = bad
    rows = rows_of(*[SamplingParams(temperature=temperature, top_k=3)] * 4)
    first, *broken, last = chosen(logits, rows)
    assert broken == [NUMERICAL_ERROR] * 2
    assert min(first, last) >= 0
    edited = chosen(logits, rows, is_edited=True)
    if bad == -np.inf:
        assert min(edited) >= 0
        assert edited[2] > 0
    else:
        assert edited == [first, *broken, last]
    logits[0], logits[3, 5:] = -np.inf, -np.inf
    banned = chosen(logits, rows, is_edited=True)
    assert banned[0] == NOTHING_ALLOWED
    assert 0 <= banned[3] < 3


def gumbel_of(row: np.void, token_id: int) -> float:
    seed = int(row["seed"])
    counter = (int(row["position"]), int(row["choice"]), 1, token_id // 4)
    word = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))[token_id % 4]
    return -math.log(-math.log1p(-(word + 0.5) / 2**32))


def test_a_draw_is_the_largest_of_scores_with_the_noise_of_each_token() -> None:
    logits = np.random.default_rng(5).normal(size=(6, 90)).astype(np.float32)
    logits[2] = 0
    fields = [{}, {"temperature": 0.3}, {}, {"min_p": 0.4}, {"top_k": 9}, {"top_p": 0.3}]
    rows = rows_of(*[SamplingParams(seed=7 - 2**40, **one) for one in fields], position=2**31 - 1)
    rows["choice"] = range(6)
    drawn = chosen(logits, rows)
    for row, x, token_id in zip(rows, logits.astype(float), drawn, strict=True):
        (kept,) = by_sorting(x[None].astype(np.float32), np.array([row]))
        scores = {i: x[i] / row["temperature"] + gumbel_of(row, i) for i in kept}
        best, second = sorted(scores.values(), reverse=True)[:2]
        assert best - second > 1e-4
        assert scores[token_id] == best


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 2, 4}),
        ({"top_p": 0.2}, {0, 2, 4, 6, 8}),
        ({"min_p": 0.9}, set(range(0, 24, 2))),
    ],
)
def test_nothing_but_what_is_kept_is_drawn(fields: dict[str, float], kept: set[int]) -> None:
    rows = np.repeat(rows_of(SamplingParams(temperature=2, **fields)), 20)
    rows["position"] = np.arange(20)
    drawn = set(chosen(np.tile(np.float32([0.0, -0.5]), (20, 12)), rows))
    assert drawn <= kept
    assert len(drawn) > 1 or len(kept) == 1


COUNT = 4000 if torch.cuda.is_available() else 40
"""Much of an interpreter's time."""
QUANTILES = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46}
"""Of the chi-square distribution at 0.999, by degrees of freedom."""


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.5, "top_k": 3},
        {"min_p": 0.2, "temperature": 2},
    ],
    ids="+".join,
)
def test_frequencies_are_the_probabilities(fields: dict[str, float]) -> None:
    """Of the tokens at so many positions, with one seed."""
    params = SamplingParams(seed=11, **fields)
    logits = np.array([0.3, -1.0, 1.1, -0.4, 0.0, -3.5], np.float32)
    probabilities = keep(dict(enumerate(map(float, logits))), params).probabilities
    rows = np.repeat(rows_of(params), COUNT)
    rows["position"] = np.arange(COUNT)
    drawn = chosen(np.tile(logits, (COUNT, 1)), rows, chunk_size=8, may_cut="top_k" in fields)
    counts = np.bincount(drawn, minlength=6)
    ids = list(probabilities)
    assert counts[ids].sum() == COUNT
    expected = np.array(list(probabilities.values())) * COUNT
    statistic = float(((counts[ids] - expected) ** 2 / expected).sum())
    assert statistic < QUANTILES[len(ids) - 1]


def test_rows_are_narrowed_without_changing_what_they_mean() -> None:
    rows = rows_of(
        SamplingParams(temperature=1e-300, top_p=0.3),
        SamplingParams(temperature=0, top_k=-1, top_p=1.0),
        SamplingParams(top_p=1 - 1e-12, min_p=0.5, seed=-(2**63)),
    )
    rows["top_k"][2] = 2**40
    columns = device_rows(rows, DEVICE)
    for column, dtype in zip(columns, ("f4", "f4", "i4", "f4", "i8", "i4", "i4"), strict=True):
        assert column.cpu().numpy().dtype == dtype
        assert column.data_ptr() % 16 == 0
    assert columns.temperature[0] > 0
    assert columns.temperature[1] == 0
    assert columns.top_k.tolist() == [0, 0, 2**31 - 1]
    assert columns.top_p[0].item() < 0.3
    assert columns.top_p[2] < 1
    assert columns.max_gap[1].item() == np.inf
    assert columns.seed[2] == -(2**63)
    assert columns.position.tolist() == [5, 5, 5]
