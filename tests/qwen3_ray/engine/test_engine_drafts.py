"""Drafts from the engine's settings to its answers: fewer steps, the same tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray import LLM, SamplingParams
from qwen3_ray.config import Numerics
from qwen3_ray.request import GenerateRequest
from qwen3_ray.testing import FakeExecutor, make_fake_engine


def run(request: GenerateRequest, num_speculative_tokens: int) -> tuple[list[int], int, int]:
    """Tokens, steps and drafts that were right."""
    engine = make_fake_engine(
        # Few different tokens: what came before comes again.
        FakeExecutor(vocab_size=3),
        num_speculative_tokens=num_speculative_tokens,
    )
    engine.add_request(request)
    token_ids: list[int] = []
    while engine.has_unfinished:
        for delta in engine.step():
            token_ids += delta.token_ids
    engine.check_integrity()
    stats = engine.stats()
    assert stats.num_accepted_tokens <= stats.num_draft_tokens
    assert stats.num_generated_tokens == len(token_ids)
    return token_ids, stats.num_steps, stats.num_accepted_tokens


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), num_speculative_tokens=st.integers(1, 8))
def test_drafts_save_as_many_steps_as_were_right_and_change_no_token(
    seed: int, num_speculative_tokens: int
) -> None:
    request = GenerateRequest(
        request_id="a",
        prompt_token_ids=tuple(range(5)),
        params=SamplingParams(max_tokens=50, seed=seed),
    )
    token_ids, num_steps, num_right = run(request, 0)
    assert (num_steps, num_right) == (50, 0)
    drafted, num_steps, num_right = run(request, num_speculative_tokens)
    assert drafted == token_ids
    assert num_steps == 50 - num_right


@pytest.mark.parametrize(
    ("numerics", "num_speculative_tokens", "drafts"),
    [("exact", None, True), ("exact", 0, False), ("fast", None, False), ("fast", 2, True)],
)
def test_an_engine_drafts_if_it_is_told_to_or_is_exact(
    numerics: Numerics, num_speculative_tokens: int | None, drafts: bool
) -> None:
    with LLM(numerics=numerics, num_speculative_tokens=num_speculative_tokens) as llm:
        params = SamplingParams(max_tokens=20, allowed_token_ids=[7], ignore_eos=True)
        (output,) = llm.generate(["Once"], params)
        assert output.outputs[0].token_ids == [7] * 20
        assert (llm.stats.num_accepted_tokens > 0) == drafts
        assert (llm.stats.num_steps < 20) == drafts
