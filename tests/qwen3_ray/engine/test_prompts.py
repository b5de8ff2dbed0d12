from dataclasses import replace

import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.engine.prompts import MAX_SALT_LENGTH, Prompt, PromptReader
from qwen3_ray.engine.stats import EngineInfo
from qwen3_ray.errors import PromptTooLongError, RequestError
from qwen3_ray.request import FinishReason, GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(DEMO_MODEL_DIR)
ENDOFTEXT = 4070
INFO = EngineInfo(
    model_name="demo-model",
    numerics_fingerprint="f",
    exact=True,
    block_size=32,
    max_model_len=32,
    vocab_size=4096,
    tensor_parallel_size=1,
    eos_token_ids=frozenset({ENDOFTEXT}),
)
TEXT = "It is a truth universally acknowledged"
IDS = TOKENIZER.encode(TEXT)


def reader(tokenizer: Tokenizer | None = TOKENIZER, seed: int = 0) -> PromptReader:
    return PromptReader(INFO, tokenizer, seed=seed)


def request_of(prompt: Prompt, **settings: object) -> GenerateRequest:
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    (choice,) = reader().read(prompt, params).choices
    return choice.request


def test_every_shape_of_a_prompt_becomes_the_same_request() -> None:
    by_ids = request_of({"prompt_token_ids": IDS}, seed=1)
    for prompt in (TEXT, {"prompt": TEXT}):
        assert replace(request_of(prompt, seed=1), request_id="") == replace(  # type: ignore[arg-type]
            by_ids, request_id=""
        )
    assert by_ids.prompt_token_ids == tuple(IDS)
    assert reader().read(TEXT, SamplingParams()).prompt == TEXT
    assert reader().read({"prompt_token_ids": IDS}, SamplingParams()).prompt is None


def test_salt_priority_and_output_made_before_reach_the_engine() -> None:
    prompt: Prompt = {"prompt_token_ids": IDS, "output_token_ids": [5, 6], "cache_salt": "mine"}
    (choice,) = reader().read(prompt, SamplingParams(), priority=-2).choices
    request = choice.request
    assert (request.cache_salt, request.priority) == ("mine", -2)
    assert request.output_token_ids == (5, 6)
    assert request_of(TEXT).cache_salt == ""


def test_n_answers_are_requests_that_differ_in_their_choice() -> None:
    params = SamplingParams(n=3, prompt_logprobs=1, logprobs=1)
    requests = [choice.request for choice in reader().read(TEXT, params).choices]
    assert [request.choice for request in requests] == [0, 1, 2]
    assert len({request.request_id for request in requests}) == 3
    assert len({request.params.seed for request in requests}) == 1
    assert [request.params.prompt_logprobs for request in requests] == [1, None, None]
    assert {request.params.logprobs for request in requests} == {1}
    assert {request.params.n for request in requests} == {3}


def test_seeds_are_drawn_once_for_a_prompt_and_follow_from_the_engine_s() -> None:
    one, other = reader(seed=3), reader(seed=3)
    seeds = [one.read(TEXT, SamplingParams()).choices[0].request.params.seed for _ in range(3)]
    again = [other.read(TEXT, SamplingParams()).choices[0].request.params.seed for _ in range(3)]
    assert seeds == again
    assert len(set(seeds)) == 3
    assert request_of(TEXT, seed=7).params.seed == 7


def test_parameters_are_resolved() -> None:
    params = request_of(TEXT, bad_words=["truth"], max_tokens=None, top_k=10**6).params
    assert params.max_tokens == 32 - len(IDS)
    assert params.top_k == 4096
    assert tuple(TOKENIZER.encode(" truth")) in params.bad_words_token_ids


def test_long_prompts_can_be_shortened() -> None:
    params = SamplingParams(max_tokens=4)
    long: Prompt = {"prompt_token_ids": list(range(100))}
    for options, expected in (
        ({"truncate_prompt_tokens": 3}, [97, 98, 99]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, [0, 1, 2]),
        ({"truncate_prompt_tokens": -1}, list(range(72, 100))),
    ):
        answer = reader().read(long, params, tokenization=options)  # type: ignore[arg-type]
        assert answer.choices[0].request.prompt_token_ids == tuple(expected)
    with pytest.raises(PromptTooLongError):
        reader().read(long, params)
    with pytest.raises(RequestError, match="must not hold 'padding'"):
        reader().read(long, params, tokenization={"padding": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("prompt", "settings", "param"),
    [
        (7, {}, "prompt"),
        ({"prompt": TEXT, "prompt_token_ids": IDS}, {}, "prompt"),
        ({"text": TEXT}, {}, "prompt"),
        ({"prompt": 7}, {}, "prompt"),
        ("", {}, "prompt"),
        ({"prompt_token_ids": [4096]}, {}, "prompt_token_ids"),
        ({"prompt_token_ids": IDS, "output_token_ids": [4096]}, {}, "output_token_ids"),
        ({"prompt_token_ids": IDS, "output_token_ids": [1]}, {"n": 2}, "n"),
        (
            {"prompt_token_ids": IDS, "output_token_ids": [1]},
            {"prompt_logprobs": 1},
            "prompt_logprobs",
        ),
        ({"prompt": TEXT, "cache_salt": ""}, {}, "cache_salt"),
        ({"prompt": TEXT, "cache_salt": "x" * (MAX_SALT_LENGTH + 1)}, {}, "cache_salt"),
        ({"prompt": TEXT, "cache_salt": 7}, {}, "cache_salt"),
        (TEXT, {"logit_bias": {4096: 1.0}}, "logit_bias"),
        (TEXT, {"max_tokens": 32}, "max_tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_and_named(
    prompt: Prompt, settings: dict[str, object], param: str
) -> None:
    with pytest.raises(RequestError) as info:
        request_of(prompt, **settings)
    assert info.value.param == param


def test_a_priority_is_a_whole_number() -> None:
    for bad in (True, 1.0, "1", None):
        with pytest.raises(RequestError) as info:
            reader().read(TEXT, SamplingParams(), priority=bad)  # type: ignore[arg-type]
        assert info.value.param == "priority"


def test_the_text_ends_before_the_model_s_own_end() -> None:
    params = SamplingParams(skip_special_tokens=False)
    for token_ids, text in (([*IDS, ENDOFTEXT], TEXT), (IDS, TEXT)):
        (choice,) = reader().read(TEXT, params).choices
        assert choice.processor is not None
        assert choice.processor.push(token_ids, FinishReason.STOP).text == text


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"stop": "x"}, "stop"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"structured_outputs": StructuredOutputs(regex="x")}, "structured_outputs"),
    ],
)
def test_without_a_tokenizer_text_is_refused_in_every_form(
    settings: dict[str, object], param: str
) -> None:
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="tokenizer") as info:
        reader(None).read({"prompt_token_ids": IDS}, params)
    assert info.value.param == param
    with pytest.raises(RequestError, match="no tokenizer"):
        reader(None).read(TEXT, SamplingParams())
    (choice,) = reader(None).read({"prompt_token_ids": IDS}, SamplingParams()).choices
    assert choice.processor is choice.text_of is None
