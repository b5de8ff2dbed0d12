"""Answers put together from deltas, cut in any way: against the whole taken at once."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.engine.answer import Answer, Choice
from qwen3_ray.engine.outputs import Logprob
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta, TokenLogprobs
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.output_processor import OutputProcessor

LETTERS = "abcd"
IDS = st.lists(st.integers(0, 3), max_size=12)


def letter(token_id: int) -> bytes:
    return LETTERS[token_id].encode()


def logprobs_of(token_id: int, num_top: int = 2) -> TokenLogprobs:
    """A place where id 0 is the likeliest, then 1, 2 and 3."""
    top = tuple((id_, -float(id_ + 1)) for id_ in range(num_top))
    return TokenLogprobs(
        token_id=token_id, logprob=-float(token_id + 1), rank=token_id + 1, top=top
    )


def choice(params: SamplingParams, *, before: tuple[int, ...] = (), index: int = 0) -> Choice:
    request = GenerateRequest(
        request_id="r",
        prompt_token_ids=(3, 2, 1),
        params=params,
        choice=index,
        output_token_ids=before,
    )
    processor = OutputProcessor(letter, params.stop_strings)
    return Choice(request, processor, lambda token_id: LETTERS[token_id])


def deltas_of(
    token_ids: list[int], cuts: list[int], finish_reason: FinishReason, *, logprobs: bool
) -> list[TokenDelta]:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(token_ids)), len(token_ids)]
    pieces = [token_ids[low:high] for low, high in pairwise(bounds)]
    return [
        TokenDelta(
            request_id="r",
            token_ids=tuple(piece),
            logprobs=tuple(map(logprobs_of, piece)) if logprobs else (),
            num_cached_tokens=2 if index == 0 else None,
            finish_reason=finish_reason if index == len(pieces) - 1 else None,
        )
        for index, piece in enumerate(pieces)
    ]


@settings(deadline=None)
@given(
    token_ids=IDS,
    cuts=st.lists(st.integers(0, 12), max_size=4),
    stop=st.sampled_from(["", "b", "ca", "aaa"]),
    logprobs=st.sampled_from([None, 0, 2]),
)
def test_pieces_join_to_the_answer_however_the_steps_were_cut(
    token_ids: list[int], cuts: list[int], stop: str, logprobs: int | None
) -> None:
    params = SamplingParams(stop=stop or (), logprobs=logprobs)
    parts = deltas_of(token_ids, cuts, FinishReason.LENGTH, logprobs=logprobs is not None)
    answer, pieces = choice(params), []
    for delta in parts:
        pieces.append(answer.push(delta))
        if answer.finish_reason is not None:
            break
    output = answer.output()
    text = "".join(LETTERS[token_id] for token_id in token_ids)
    at = text.find(stop) if stop else -1
    num_kept = len(text) if at < 0 else at + len(stop)
    assert output.text == (text if at < 0 else text[:at])
    assert output.token_ids == token_ids[:num_kept]
    assert (output.finish_reason, output.stop_reason) == (
        ("length", None) if at < 0 else ("stop", stop)
    )
    assert "".join(piece.text for piece in pieces) == output.text
    assert [id_ for piece in pieces for id_ in piece.token_ids] == output.token_ids
    assert answer.num_cached_tokens == 2
    if logprobs is None:
        assert output.logprobs is output.cumulative_logprob is None
        assert all(piece.logprobs is None for piece in pieces)
    else:
        assert output.logprobs is not None
        assert [next(iter(place)) for place in output.logprobs] == output.token_ids
        assert output.cumulative_logprob == -sum(id_ + 1.0 for id_ in output.token_ids)
        assert [place for piece in pieces for place in piece.logprobs or []] == output.logprobs


def test_logprobs_have_vllms_shape() -> None:
    answer = choice(SamplingParams(logprobs=2))
    delta = TokenDelta(
        request_id="r", token_ids=(1, 3), logprobs=(logprobs_of(1), logprobs_of(3, num_top=2))
    )
    piece = answer.push(delta)
    likely = {
        0: Logprob(logprob=-1.0, rank=1, decoded_token="a"),
        1: Logprob(logprob=-2.0, rank=2, decoded_token="b"),
    }
    chosen = Logprob(logprob=-4.0, rank=4, decoded_token="d")
    assert piece.logprobs == [likely, {3: chosen, **likely}]


def test_without_a_tokenizer_there_are_ids_and_logprobs_but_no_text() -> None:
    request = GenerateRequest(
        request_id="r", prompt_token_ids=(1,), params=SamplingParams(logprobs=0)
    )
    answer = Choice(request, None, None)
    answer.push(TokenDelta(request_id="r", token_ids=(2,), logprobs=(logprobs_of(2, 0),)))
    output = answer.output()
    assert (output.text, output.token_ids) == ("", [2])
    assert output.logprobs == [{2: Logprob(logprob=-3.0, rank=3, decoded_token=None)}]


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_prompt_logprobs_begin_with_none_and_are_told_once(num_tokens: int) -> None:
    params = SamplingParams(prompt_logprobs=2, max_tokens=0)
    answer = choice(params)
    places = tuple(map(logprobs_of, [2, 1]))
    pieces = []
    if num_tokens > 1:
        for place in places:
            pieces.append(answer.push(TokenDelta(request_id="r", prompt_logprobs=(place,))))
    pieces.append(answer.push(TokenDelta(request_id="r", finish_reason=FinishReason.LENGTH)))
    told = Answer(prompt=None, choices=[answer]).output().prompt_logprobs
    assert told is not None
    assert [place and next(iter(place)) for place in told] == [None, 2, 1][:num_tokens]
    assert [place for piece in pieces for place in piece.prompt_logprobs or []] == told


def test_a_request_s_choices_are_its_outputs_in_order() -> None:
    choices = [choice(SamplingParams(n=2), index=index) for index in range(2)]
    for index in (1, 0):
        piece = choices[index].push(
            TokenDelta(
                request_id="r",
                token_ids=(index,),
                num_cached_tokens=index,
                finish_reason=FinishReason.LENGTH,
            )
        )
        assert piece.index == index
    output = Answer(prompt="text", choices=choices).output()
    assert [(one.index, one.text) for one in output.outputs] == [(0, "a"), (1, "b")]
    assert (output.prompt, output.prompt_token_ids) == ("text", [3, 2, 1])
    assert output.num_cached_tokens == 0
    assert output.prompt_logprobs is None


def test_an_answer_goes_on_in_the_middle_of_a_stop_string_or_a_character() -> None:
    answer = choice(SamplingParams(stop="abc"), before=(3, 0))
    answer.push(TokenDelta(request_id="r", token_ids=(1,)))
    answer.push(TokenDelta(request_id="r", token_ids=(2, 3)))
    output = answer.output()
    assert (output.text, output.token_ids) == ("", [1, 2])
    assert (output.finish_reason, output.stop_reason) == ("stop", "abc")
    data = "é".encode()
    halves = Choice(
        answer.request, OutputProcessor(lambda id_: data[:1] if id_ == 0 else data[1:]), None
    )
    assert halves.push(TokenDelta(request_id="r", token_ids=(1,))).text == "é"


def test_an_answer_whose_beginning_holds_a_stop_string_is_complete() -> None:
    answer = choice(SamplingParams(stop="b"), before=(0, 1, 2))
    output = answer.output()
    assert (output.text, output.token_ids) == ("", [])
    assert (output.finish_reason, output.stop_reason) == ("stop", "b")
