"""Whole outcomes of the Triton kernels against the reference, with edits and logprobs."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.runner import reference_sampling
from qwen3_ray.runner.device_rows import device_rows
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.sampling_rows import (
    BIAS,
    NO_EDITS,
    NOTHING_ALLOWED,
    NUMERICAL_ERROR,
    SEEN,
    Outcome,
    RowEdits,
    SamplingRows,
    SamplingRowsBuilder,
    packed_row,
)
from qwen3_ray.runner.sampling_way import select_sampling
from qwen3_ray.runner.triton_choice import choose
from qwen3_ray.runner.triton_edits import DeviceBatch
from qwen3_ray.runner.triton_sampling import TritonSampling
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.sampling_oracle import Context
from tests.qwen3_ray.runner.sampling_rig import Logits, logit_rows, make_request

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = 32
NUM_TOKENS = 150
NUM_WORDS = 5


def row(**fields: object) -> bytes:
    return packed_row(make_request(Context(SamplingParams(**{"seed": 0, **fields}))))


def batch_of(*rows: tuple[bytes, RowEdits]) -> SamplingRows:
    builder = SamplingRowsBuilder(NUM_WORDS)
    for position, (packed, edits) in enumerate(rows):
        builder.sample(packed, position, edits)
    return builder.build()


def some_edits(seed: int) -> RowEdits:
    """Of ids, a few of which are not known, and which often meet each other."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        chosen: list[int] = rng.choice(NUM_TOKENS + 10, count, replace=False).tolist()
        return chosen

    biased, seen = ids(90), ids(100)
    words = rng.integers(-(2**31), 2**31, NUM_WORDS, dtype=np.int32)
    return RowEdits(
        mask=None if seed % 3 == 0 else words,
        bans=() if seed % 4 == 0 else [*ids(9), *ids(9)],
        biases=np.array([(i, rng.normal() * 3) for i in biased], BIAS),
        seen=np.array([(i, rng.integers(3), rng.integers(2)) for i in seen], SEEN),
    )


def padded(logits: Logits) -> torch.Tensor:
    """With columns and rows beyond what is known."""
    wide = np.pad(logits, ((0, 2), (0, 7)), constant_values=np.nan)
    return torch.from_numpy(wide).to(DEVICE)


def sample(logits: Logits, batch: SamplingRows, max_rows: int = 16) -> Outcome:
    way = TritonSampling(chunk_size=SMALL, max_rows=max_rows)
    return way.sample(padded(logits), logits.shape[1], batch)


def reference(logits: Logits, batch: SamplingRows) -> Outcome:
    return reference_sampling.sample(torch.from_numpy(logits), batch)


def check(actual: Outcome, expected: Outcome, scored: Sequence[int]) -> None:
    """All ids, and what `scored` rows tell of theirs."""
    assert actual.token_ids.tolist() == expected.token_ids.tolist()
    assert actual.top_ids.shape == expected.top_ids.shape
    for mine, theirs in zip(actual[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype
        if mine.dtype == np.float32:
            np.testing.assert_allclose(mine[scored], theirs[scored], rtol=2e-7, atol=1e-12)
        else:
            assert mine[scored].tolist() == theirs[scored].tolist()


PENALTIES: list[dict[str, float]] = [
    {"repetition_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.1},
    {"repetition_penalty": 0.3, "frequency_penalty": -2.0, "presence_penalty": 1.9},
]


def test_greedy_rows_with_all_edits_are_the_reference_s() -> None:
    logits = (np.random.default_rng(0).normal(size=(9, NUM_TOKENS)) * 3).astype(np.float32)
    logits[:, ::3] = np.round(logits[:, ::3])
    greedy = [row(temperature=0, logprobs=3 * i, **PENALTIES[i % 4]) for i in range(6)]
    batch = batch_of(
        *((packed, some_edits(seed)) for seed, packed in enumerate(greedy)),
        (row(temperature=0), NO_EDITS),
        (row(temperature=0, logprobs=2), NO_EDITS),
        (row(temperature=0, logprobs=0), RowEdits(bans=[int(logits[8].argmax())])),
    )
    check(sample(logits, batch), reference(logits, batch), [0, 1, 2, 3, 4, 5, 7, 8])


@pytest.mark.parametrize("max_rows", [16, 32])
def test_edited_logits_are_the_reference_s(max_rows: int) -> None:
    """In every part of a batch, to the last bit but for a fused multiplication."""
    num_rows = 19
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(num_rows, NUM_TOKENS)) * 3).astype(np.float32)
    logits[4, ::2] = 3e38
    rows = [(row(**PENALTIES[i % 4]), some_edits(i)) for i in range(num_rows)]
    rows[4] = (row(repetition_penalty=1e-30), some_edits(6))
    rows[7] = (row(), NO_EDITS)
    batch = batch_of(*rows)
    edits = DeviceBatch(batch, DEVICE)
    parts = [slice(i, min(i + max_rows, num_rows)) for i in range(0, num_rows, max_rows)]
    edited = torch.cat(
        [edits.edit(padded(logits), NUM_TOKENS, part, chunk_size=SMALL) for part in parts]
    )[:, :NUM_TOKENS].cpu()
    expected = reference_sampling.edit(torch.from_numpy(logits), batch)
    torch.testing.assert_close(edited, expected, rtol=1e-7, atol=0)
    assert torch.equal(edited == -torch.inf, expected == -torch.inf)
    assert torch.equal(edited[7], torch.from_numpy(logits[7]))
    assert (edited[4].abs() == torch.finfo(torch.float32).max).any()
    changed = (edited != torch.from_numpy(logits)).sum(1)
    assert (changed > 50).sum() > 12


def test_drawn_rows_are_those_of_their_edited_logits() -> None:
    """Whatever else is in the batch."""
    logits = (np.random.default_rng(2).normal(size=(6, NUM_TOKENS)) * 2).astype(np.float32)
    fields = [{}, {"top_k": 9}, {"top_p": 0.7}, {"min_p": 0.1}, {"logprobs": 2}, {}]
    rows = [(row(**one), some_edits(i)) for i, one in enumerate(fields)]
    rows[5] = (row(), NO_EDITS)
    batch = batch_of(*rows)
    edited = reference_sampling.edit(torch.from_numpy(logits), batch).to(DEVICE)
    out = torch.full((6,), -77, dtype=torch.int32, device=DEVICE)
    columns = device_rows(batch.rows, DEVICE)
    choose(edited, columns, NUM_TOKENS, out, is_edited=True, chunk_size=64)
    outcome = sample(logits, batch)
    assert outcome.token_ids.tolist() == out.tolist()
    alone = sample(logits[5:], batch._replace(rows=batch.rows[5:]))
    assert alone.token_ids.tolist() == out.tolist()[5:]


@pytest.mark.parametrize("fields", [{"top_p": 1e-6}, {"top_k": 1}])
def test_a_cut_is_searched_for_whichever_parameter_asks_for_it(fields: dict[str, float]) -> None:
    logits = np.random.default_rng(6).normal(size=(8, NUM_TOKENS)).astype(np.float32)
    batch = batch_of(*[(row(temperature=2, **fields), NO_EDITS)] * 8)
    assert sample(logits, batch).token_ids.tolist() == logits.argmax(1).tolist()


def test_rows_that_score_skip_or_cannot_be_sampled() -> None:
    logits = np.random.default_rng(4).normal(size=(8, NUM_TOKENS)).astype(np.float32)
    logits[3, 149] = np.nan
    logits[4, 0] = -np.inf
    logits[6, 5] = np.inf
    builder = SamplingRowsBuilder(NUM_WORDS)
    builder.score(7, 2)
    builder.score(NUM_TOKENS + 1, 0)
    builder.skip()
    builder.score(8, 1)
    builder.sample(row(), 0, RowEdits(bans=[0]))  # banned, but an error
    builder.sample(row(logprobs=1), 0, RowEdits(mask=np.zeros(NUM_WORDS, np.int32)))
    builder.sample(row(temperature=0, logprobs=1), 0, NO_EDITS)
    builder.sample(row(temperature=0), 0, RowEdits(bans=range(1, NUM_TOKENS)))
    batch = builder.build()
    outcome = sample(logits, batch)
    expected = [7, NUM_TOKENS + 1, NOTHING_ALLOWED, NUMERICAL_ERROR, NUMERICAL_ERROR]
    assert outcome.token_ids.tolist() == [*expected, NOTHING_ALLOWED, NUMERICAL_ERROR, 0]
    check(outcome, reference(logits, batch), [0, 1, 5])


def test_without_logprobs_and_without_rows_there_is_nothing_else() -> None:
    logits = np.zeros((1, NUM_TOKENS), np.float32)
    outcome = sample(logits, batch_of((row(temperature=0), NO_EDITS)))
    assert outcome.token_ids.tolist() == [0]
    assert outcome.top_ids.shape == (1, 0)
    assert sample(logits[:0], batch_of()).token_ids.tolist() == []


@settings(max_examples=12, deadline=None)
@given(logits=logit_rows(max_size=200), num_top=st.integers(0, 20), token_id=st.integers(0, 250))
def test_scores_are_the_reference_s(logits: Logits, num_top: int, token_id: int) -> None:
    builder = SamplingRowsBuilder(num_words=7)
    builder.score(token_id, num_top)
    builder.score(min(token_id, len(logits) - 1), 20)
    batch, rows = builder.build(), np.tile(logits, (2, 1))
    check(sample(rows, batch), reference(rows, batch), [0, 1])


def test_the_way_follows_from_the_device() -> None:
    pytest.importorskip("numba")  # a machine with a GPU needs none
    assert select_sampling("auto", torch.device("cpu")).method.startswith("philox4x32-10, inverse")
    assert isinstance(select_sampling("auto", torch.device("cuda")), TritonSampling)
    methods = {select_sampling(name, DEVICE).method for name in ("numba", "reference", "triton")}
    assert len(methods) == 3
    sampler = Sampler(num_valid_token_ids=9, device=DEVICE, kernels="triton")
    assert sampler.method == TritonSampling.method
