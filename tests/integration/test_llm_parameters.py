"""Sampling parameters through `LLM` on the demo model; logprobs against transformers."""

from collections.abc import Iterator

import pytest
import torch
import transformers

from qwen3_ray import LLM, Logprob, RequestOutput, SamplingParams, StructuredOutputs
from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import RequestError

PROMPT = "Mr. Darcy looked at her and"
CLOSE = 5e-3  # weights are packed to fp16


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """Steps so small that prompts are computed in several."""
    with LLM(max_model_len=256, max_num_seqs=16, max_num_batched_tokens=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def oracle() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32)


def greedy(max_tokens: int = 12, **settings: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **settings)  # type: ignore[arg-type]


def expected_logprobs(oracle: transformers.PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """[num_tokens, vocab_size], row `i` for the token after `token_ids[: i + 1]`."""
    with torch.inference_mode():
        return oracle(torch.tensor([token_ids])).logits[0].log_softmax(-1)


def check_place(place: dict[int, Logprob], row: torch.Tensor, token_id: int, num_top: int) -> None:
    """That `place` tells how likely `token_id` was, and the likeliest ones."""
    assert next(iter(place)) == token_id
    assert len(place) in (num_top, num_top + 1)
    for other, told in place.items():
        assert told.logprob == pytest.approx(row[other].item(), abs=CLOSE)
        # Its rank, but for others that are as likely for all that the weights' packing leaves.
        above = int((row > row[other] + CLOSE).sum())
        below = int((row > row[other] - CLOSE).sum())
        assert above <= told.rank - 1 <= below
    assert sorted(told.rank for told in place.values())[:num_top] == list(range(1, num_top + 1))


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_logprobs_are_the_model_s_own_whatever_the_parameters(
    llm: LLM, oracle: transformers.PreTrainedModel, num_top: int
) -> None:
    params = SamplingParams(
        temperature=0.7, top_k=40, presence_penalty=1.0, seed=5, max_tokens=10, logprobs=num_top
    )
    output = llm.generate(PROMPT, params)[0]
    answer = output.outputs[0]
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    rows = expected_logprobs(oracle, output.prompt_token_ids + answer.token_ids)
    rows = rows[len(output.prompt_token_ids) - 1 :]
    for place, row, token_id in zip(answer.logprobs, rows, answer.token_ids, strict=False):
        check_place(place, row, token_id, num_top)
    assert llm.tokenizer is not None
    texts = [
        place[id_].decoded_token
        for place, id_ in zip(answer.logprobs, answer.token_ids, strict=True)
    ]
    assert texts == [llm.tokenizer.decode([i], skip_special_tokens=False) for i in answer.token_ids]


def test_a_greedy_token_is_the_likeliest(llm: LLM) -> None:
    answer = llm.generate(PROMPT, greedy(logprobs=1))[0].outputs[0]
    assert answer.logprobs is not None
    assert [list(place) for place in answer.logprobs] == [[i] for i in answer.token_ids]
    assert {told.rank for place in answer.logprobs for told in place.values()} == {1}


def test_prompts_can_be_scored_without_an_answer(
    llm: LLM, oracle: transformers.PreTrainedModel
) -> None:
    params = greedy(0, prompt_logprobs=3)
    outputs = llm.generate([PROMPT * 6, PROMPT, {"prompt_token_ids": [7]}], params)
    for output in outputs:
        assert output.outputs[0].token_ids == []
        assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("", "length")
        told = output.prompt_logprobs
        assert told is not None
        assert told[0] is None
        assert len(told) == len(output.prompt_token_ids)
        rows = expected_logprobs(oracle, output.prompt_token_ids)
        for place, row, token_id in zip(told[1:], rows, output.prompt_token_ids[1:], strict=False):
            assert place is not None
            check_place(place, row, token_id, 3)


def test_a_prompt_is_scored_whole_although_its_beginning_is_cached(llm: LLM) -> None:
    params = greedy(4, prompt_logprobs=2)
    first, second = (llm.generate(PROMPT * 8, params)[0] for _ in range(2))
    assert first.prompt_logprobs == second.prompt_logprobs
    assert len(second.prompt_logprobs or []) == len(second.prompt_token_ids)


def test_logprobs_end_where_a_stop_string_ends_the_answer(llm: LLM) -> None:
    whole = llm.generate(PROMPT, greedy(20, logprobs=2))[0].outputs[0]
    stop = whole.text[10:14]
    cut = llm.generate(PROMPT, greedy(20, logprobs=2, stop=stop))[0].outputs[0]
    assert cut.logprobs == (whole.logprobs or [])[: len(cut.token_ids)]
    assert len(cut.token_ids) < 20
    pieces = list(llm.stream(PROMPT, greedy(20, logprobs=2, stop=stop)))
    assert [place for piece in pieces for place in piece.logprobs or []] == cut.logprobs


def texts(output: RequestOutput) -> list[str]:
    assert [one.index for one in output.outputs] == list(range(len(output.outputs)))
    return [one.text for one in output.outputs]


def test_n_answers_differ_and_are_repeated_by_the_same_seed(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=3, max_tokens=12)
    one, other = llm.generate([PROMPT, PROMPT], params)
    assert texts(one) == texts(other)
    assert len(set(texts(one))) == 4
    fewer = llm.generate(PROMPT, SamplingParams(n=2, seed=3, max_tokens=12))[0]
    assert texts(fewer) == texts(one)[:2]
    pieces = list(llm.stream(PROMPT, params))
    joined = ["".join(p.text for p in pieces if p.index == index) for index in range(4)]
    assert joined == texts(one)


def test_n_answers_compute_their_prompt_once(llm: LLM) -> None:
    llm.reset_prefix_cache()
    before = llm.stats.num_prompt_tokens
    output = llm.generate(PROMPT * 10, SamplingParams(n=4, seed=1, max_tokens=2))[0]
    num_computed = llm.stats.num_prompt_tokens - before
    num_prompt = len(output.prompt_token_ids)
    assert num_prompt <= num_computed <= num_prompt + 3 * llm.info.block_size


def test_bad_words_do_not_come_up(llm: LLM) -> None:
    whole = llm.generate(PROMPT, greedy(30))[0].outputs[0].text
    word = max(whole.split(), key=len).strip(",.;\"'")
    without = llm.generate(PROMPT, greedy(30, bad_words=[word]))[0].outputs[0].text
    assert word in whole
    assert word not in without


def test_bias_and_allowed_tokens_decide_what_is_sampled(llm: LLM) -> None:
    forced = llm.generate(PROMPT, greedy(5, logit_bias={100: 100.0}))[0].outputs[0]
    assert forced.token_ids == [100] * 5
    allowed = llm.generate(PROMPT, SamplingParams(allowed_token_ids=[5, 6], max_tokens=9, seed=2))
    assert set(allowed[0].outputs[0].token_ids) <= {5, 6}


def test_an_answer_does_not_end_before_its_least_tokens(llm: LLM) -> None:
    chat = llm.chat_prompt([{"role": "user", "content": "What is a dog?"}])
    short = llm.generate(chat, SamplingParams(temperature=0, max_tokens=60))[0].outputs[0]
    least = len(short.token_ids) + 5
    params = SamplingParams(temperature=0, max_tokens=60, min_tokens=least)
    longer = llm.generate(chat, params)[0].outputs[0]
    assert short.finish_reason == "stop"
    assert len(longer.token_ids) > least - 1
    assert longer.token_ids[: len(short.token_ids) - 1] == short.token_ids[:-1]


def test_a_form_that_no_text_has_is_the_request_s_fault(llm: LLM) -> None:
    params = greedy(structured_outputs=StructuredOutputs(regex="("))
    for call in (lambda: llm.generate(PROMPT, params), lambda: list(llm.stream(PROMPT, params))):
        with pytest.raises(RequestError) as info:
            call()
        assert info.value.param == "structured_outputs"
    assert llm.generate(PROMPT, greedy(3))[0].outputs[0].finish_reason == "length"


@pytest.mark.parametrize("ignore_eos", [False, True], ids=["model ends", "form ends"])
def test_an_answer_has_the_form_that_is_asked_for(llm: LLM, ignore_eos: bool) -> None:
    """Whole, also where the form's end ends it and no end-of-text token follows."""
    form = StructuredOutputs(choice=["yes", "no"])
    params = SamplingParams(
        seed=1, max_tokens=30, structured_outputs=form, ignore_eos=ignore_eos, logprobs=1
    )
    answer = llm.generate(PROMPT, params)[0].outputs[0]
    assert answer.text in ("yes", "no")
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
    assert len(answer.logprobs or []) == len(answer.token_ids)
    assert llm.tokenizer is not None
    ends = llm.tokenizer.decode(answer.token_ids, skip_special_tokens=False) != answer.text
    assert ends is not ignore_eos
