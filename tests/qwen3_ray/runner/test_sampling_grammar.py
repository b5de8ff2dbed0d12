"""Outputs that must have a form, with a grammar small enough to see through."""

import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import Sampled, ScheduledRequest, Step
from qwen3_ray.errors import RequestError
from qwen3_ray.layers.kernels import KernelChoice
from qwen3_ray.runner.grammar_masks import Grammars
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.runner.sampling_rows import Int32s
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs

VOCAB = 70
EOS = 65
WORDS = ((3, 1, 4), (3, 1, 4, 1, 5), (2, 7), (2, 33, 64))
"""What an output may be."""
CHOICE = StructuredOutputs(choice=["one of the words"])


class WordMatcher:
    """Strict: it may not be asked after its end, nor go back before its beginning."""

    def __init__(self) -> None:
        self._accepted: list[int] = []

    def _following(self) -> set[int]:
        assert EOS not in self._accepted
        count, start = len(self._accepted), tuple(self._accepted)
        after = {word[count : count + 1] for word in WORDS if word[:count] == start}
        return {ids[0] if ids else EOS for ids in after}

    @property
    def is_complete(self) -> bool:
        return self._following() == {EOS}

    def fill_mask(self, mask: Int32s) -> None:
        bits = np.zeros(mask.size * 32, bool)
        bits[list(self._following())] = True
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token_id: int) -> bool:
        if token_id not in self._following():
            return False
        self._accepted.append(token_id)
        return True

    def rollback(self, num_tokens: int) -> None:
        assert 0 <= num_tokens <= len(self._accepted)
        del self._accepted[len(self._accepted) - num_tokens :]


class Words:
    """Grammars of which there is one; remembers its matchers, but does not keep them."""

    def __init__(self) -> None:
        self.matchers: list[weakref.ref[WordMatcher]] = []

    def compile(self, spec: StructuredOutputs) -> "Words":
        if spec.choice is None:
            raise RequestError("structured_outputs", "is no choice")
        return self

    def matcher(self) -> WordMatcher:
        matcher = WordMatcher()
        self.matchers.append(weakref.ref(matcher))
        return matcher


def make_sampler(grammars: Grammars | None, kernels: KernelChoice = "numba") -> Sampler:
    return Sampler(
        num_valid_token_ids=VOCAB - 1,
        device=torch.device("cpu"),
        eos_token_ids=frozenset({EOS}),
        grammars=grammars,
        kernels=kernels,
    )


def make_request(output: Sequence[int] = (), **fields: object) -> RequestState:
    params = SamplingParams(**{"seed": 0, "structured_outputs": CHOICE, **fields})
    return RequestState("a", [9, 9, *output], 2, params)


def step(sampler: Sampler, request: RequestState, drafts: Sequence[int] = ()) -> Sampled:
    """One step, its tokens appended; the logits depend on the position."""
    num_known = request.num_tokens
    if request.num_computed_tokens == 0:
        request.num_computed_tokens = num_known - 1
    assert request.num_pending_tokens == 1
    request.draft_token_ids = list(drafts)
    rows = [np.random.default_rng(num_known + i).normal(size=VOCAB) for i in range(len(drafts) + 1)]
    logits = torch.from_numpy(np.stack(rows).astype(np.float32))
    item = ScheduledRequest(request, 1 + len(drafts), len(drafts))
    (sampled,) = sampler.sample(logits, Step((item,)))
    request.token_ids.extend(sampled.token_ids)
    request.num_computed_tokens += 1 + sampled.count_accepted(drafts)
    return sampled


def run(
    sampler: Sampler, request: RequestState, proposals: Sequence[Sequence[int]] = ()
) -> tuple[list[int], Sampled]:
    """The output up to its end-of-text token, if it has one, and the last step's result."""
    for drafts in [*proposals, *[()] * 10]:
        sampled = step(sampler, request, drafts)
        output = request.token_ids[request.prompt_len :]
        if EOS in output:
            return output[: output.index(EOS) + 1], sampled
        if not sampled.token_ids:
            return output, sampled
    raise AssertionError("an output without an end")


@pytest.mark.parametrize("kernels", ["numba", "reference"])
def test_outputs_have_the_form_and_all_forms_come_up(kernels: KernelChoice) -> None:
    sampler = make_sampler(Words(), kernels)
    outputs = {tuple(run(sampler, make_request(seed=seed))[0]) for seed in range(60)}
    assert outputs == {(*word, EOS) for word in WORDS}


def test_past_the_end_of_text_a_complete_form_ends_the_output() -> None:
    sampler = make_sampler(Words())
    outputs = set()
    for seed in range(40):
        output, last = run(sampler, make_request(seed=seed, ignore_eos=True))
        assert last == Sampled(ended=True)
        outputs.add(tuple(output))
    assert outputs == {word for word in WORDS if word != (3, 1, 4)}  # it can always go on


def test_a_form_shorter_than_min_tokens_ends_the_output_all_the_same() -> None:
    output, last = run(make_sampler(Words()), make_request(min_tokens=4, seed=1))
    assert last.ended or output == [3, 1, 4, 1, 5, EOS]
    short = run(make_sampler(Words()), make_request(min_tokens=4, allowed_token_ids=[2, 7, EOS]))
    assert short == ([2, 7], Sampled(ended=True))


def test_a_form_that_other_parameters_make_impossible_is_a_problem() -> None:
    for fields in ({"allowed_token_ids": [2, EOS]}, {"bad_words_token_ids": [[7], [33], [3]]}):
        output, last = run(make_sampler(Words()), make_request(**fields))
        assert output == [2]
        assert not last.ended
        assert last.problem is not None
        assert "no token is allowed" in last.problem


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 50),
    temperature=st.sampled_from([0.0, 1.0]),
    ignore_eos=st.booleans(),
    proposals=st.lists(
        st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 33, 64, EOS, 66]), max_size=5)
        | st.sampled_from([[*word, EOS, 3][start:] for word in WORDS for start in range(3)]),
        max_size=6,
    ),
)
def test_drafts_change_nothing(
    seed: int, temperature: float, ignore_eos: bool, proposals: list[list[int]]
) -> None:
    fields = {"seed": seed, "temperature": temperature, "ignore_eos": ignore_eos}
    plain = run(make_sampler(Words()), make_request(**fields))
    drafted = run(make_sampler(Words()), make_request(**fields), proposals)
    assert drafted[0] == plain[0]
    assert drafted[1].ended == plain[1].ended


def test_output_made_elsewhere_is_followed_first() -> None:
    for seed in range(10):
        output, _ = run(make_sampler(Words()), make_request(seed=seed))
        for num_made in range(len(output)):
            resumed = make_request(output[:num_made], seed=seed)
            assert run(make_sampler(Words()), resumed)[0] == output


def test_output_that_has_not_the_form_is_a_problem_of_its_request_alone() -> None:
    sampler = make_sampler(Words())
    requests = [make_request([3, 2]), make_request([3])]
    for request in requests:
        request.num_computed_tokens = request.num_tokens - 1
    items = tuple(ScheduledRequest(request, 1) for request in requests)
    broken, fine = sampler.sample(torch.zeros(2, VOCAB), Step(items))
    assert broken.problem is not None
    assert "token 1 of the output, 2, may not be there" in broken.problem
    assert fine.token_ids == (1,)


def test_a_form_that_cannot_be_compiled_is_a_problem() -> None:
    request = make_request(structured_outputs=StructuredOutputs(regex="a"))
    assert "is no choice" in str(step(make_sampler(Words()), request).problem)
    assert "tokenizer" in str(step(make_sampler(None), make_request()).problem)


def test_what_is_known_of_a_request_goes_with_it() -> None:
    grammars = Words()
    sampler = make_sampler(grammars)
    request = make_request()
    step(sampler, request)
    step(sampler, request)
    (matcher,) = grammars.matchers
    assert matcher() is not None
    del request
    gc.collect()
    assert matcher() is None
