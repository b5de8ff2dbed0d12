"""`LLM` on the demo model: chats, defaults, shortened prompts, resumes and the prefix cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3_ray import LLM, SamplingParams
from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.engine.llm import TokensPrompt
from qwen3_ray.errors import CheckpointError, RequestError

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a fortune"
ENDOFTEXT = 4070
QUESTION = [{"role": "user", "content": "What is a dog?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=256, max_num_seqs=16, max_num_batched_tokens=64) as llm:
        yield llm


def sampled(max_tokens: int = 24, **settings: object) -> SamplingParams:
    return SamplingParams(seed=11, max_tokens=max_tokens, ignore_eos=True, **settings)  # type: ignore[arg-type]


def test_a_chat_is_the_prompt_that_its_template_gives(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    (answer,) = llm.chat(QUESTION, params)
    assert answer.prompt == ("<|im_start|>user\nWhat is a dog?<|im_end|>\n<|im_start|>assistant\n")
    assert answer.outputs == llm.generate(answer.prompt, params)[0].outputs
    assert llm.tokenizer is not None
    assert answer.prompt_token_ids == llm.tokenizer.encode(answer.prompt)


def test_chats_are_answered_together_and_streamed(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    other = [*QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "A dog is"}]}]
    one, two = llm.chat([QUESTION, other], params)
    assert one == llm.chat(QUESTION, params)[0]
    assert two.prompt == llm.chat_prompt(other)
    pieces = list(llm.stream(llm.chat_prompt(QUESTION), params))
    assert "".join(piece.text for piece in pieces) == one.outputs[0].text


def test_the_last_message_of_a_chat_can_be_continued(llm: LLM) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "A dog is a"}]
    (answer,) = llm.chat(
        begun,
        SamplingParams(max_tokens=1),
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert answer.prompt is not None
    assert answer.prompt.endswith("<|im_start|>assistant\nA dog is a")


def test_chats_that_cannot_be_answered_are_refused(llm: LLM) -> None:
    for bad in ([], QUESTION[0], "What is a dog?", [7], [[]]):
        with pytest.raises(RequestError, match="list of at least one message"):
            llm.chat(bad)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="message 1: must be an object with a role"):
        llm.chat([*QUESTION, {"content": "x"}])
    with pytest.raises(RequestError, match="2 of them for 1 prompts"):
        llm.chat(QUESTION, [SamplingParams()] * 2)


def checkpoint(model_dir: Path, *names: str) -> Path:
    """The demo model's weights and the files named."""
    for name in ("config.json", "model.safetensors", *names):
        (model_dir / name).symlink_to(DEMO_MODEL_DIR / name)
    return model_dir


def test_a_checkpoint_without_template_or_defaults_has_none(tmp_path: Path) -> None:
    with LLM(checkpoint(tmp_path, "tokenizer.json"), max_model_len=64) as llm:
        assert llm.get_default_sampling_params() == SamplingParams()
        with pytest.raises(RequestError, match="no chat template"):
            llm.chat(QUESTION)


def test_damaged_defaults_and_templates_are_told_before_anything_starts(tmp_path: Path) -> None:
    checkpoint(tmp_path, "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 7}')
    with pytest.raises(CheckpointError, match="chat_template"):
        LLM(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": -1}')
    with pytest.raises(CheckpointError, match="temperature"):
        LLM(tmp_path)


def test_a_request_without_parameters_gets_the_checkpoint_s(llm: LLM) -> None:
    defaults = llm.get_default_sampling_params()
    assert defaults == SamplingParams(temperature=0.8, top_p=0.95)
    assert len(llm.generate(PROMPT)[0].outputs[0].token_ids) <= 16
    with LLM(max_model_len=64, generation_config="none") as plain:
        assert plain.get_default_sampling_params() == SamplingParams()


def test_a_prompt_can_be_shortened_on_either_side(llm: LLM) -> None:
    assert llm.tokenizer is not None
    token_ids = llm.tokenizer.encode(PROMPT)
    params = SamplingParams(max_tokens=1)
    (left,) = llm.generate(PROMPT, params, tokenization_kwargs={"truncate_prompt_tokens": 5})
    assert left.prompt_token_ids == token_ids[-5:]
    (right,) = llm.generate(
        PROMPT,
        params,
        tokenization_kwargs={"truncate_prompt_tokens": 5, "truncation_side": "right"},
    )
    assert right.prompt_token_ids == token_ids[:5]


@pytest.mark.parametrize("num_before", [1, 7, 23])
def test_an_answer_goes_on_as_if_it_had_never_been_interrupted(llm: LLM, num_before: int) -> None:
    params = sampled(presence_penalty=0.5)
    (whole,) = llm.generate(PROMPT, params)
    token_ids = whole.outputs[0].token_ids
    rest_prompt: TokensPrompt = {
        "prompt_token_ids": whole.prompt_token_ids,
        "output_token_ids": token_ids[:num_before],
    }
    rest = llm.generate(rest_prompt, params)[0].outputs[0]
    assert rest.token_ids == token_ids[num_before:]
    assert llm.tokenizer is not None
    assert llm.tokenizer.decode(token_ids[:num_before]) + rest.text == whole.outputs[0].text
    assert rest.finish_reason == "length"


def test_an_answer_that_is_complete_already_gets_no_more(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPT, sampled(6))
    done = whole.outputs[0].token_ids
    for output, params, reason in (
        (done, sampled(6), ("length", None)),
        ([*done, ENDOFTEXT], SamplingParams(), ("stop", None)),
        (done, sampled(9, stop=whole.outputs[0].text[2:4]), ("stop", whole.outputs[0].text[2:4])),
    ):
        prompt: TokensPrompt = {
            "prompt_token_ids": whole.prompt_token_ids,
            "output_token_ids": output,
        }
        rest = llm.generate(prompt, params)[0].outputs[0]
        assert (rest.text, rest.token_ids) == ("", [])
        assert (rest.finish_reason, rest.stop_reason) == reason


def test_a_prompt_s_beginning_is_found_in_the_cache_under_its_own_salt(llm: LLM) -> None:
    def num_cached(salt: str) -> int:
        (output,) = llm.generate({"prompt": PROMPT * 4, "cache_salt": salt}, sampled(1))
        return output.num_cached_tokens

    assert (num_cached("a"), num_cached("b")) == (0, 0)
    found = num_cached("a")
    assert found > 0
    assert found % llm.info.block_size == 0
    llm.reset_prefix_cache()
    assert (num_cached("a"), num_cached("a")) == (0, found)


def test_without_prefix_caching_nothing_is_kept() -> None:
    with LLM(max_model_len=256, enable_prefix_caching=False) as llm:
        for _ in range(2):
            assert llm.generate(PROMPT * 4, sampled(1))[0].num_cached_tokens == 0


def test_what_ended_an_answer_can_be_part_of_it(llm: LLM) -> None:
    text = llm.generate(PROMPT, sampled())[0].outputs[0].text
    stop = text[5:8]
    params = sampled(stop=stop, include_stop_str_in_output=True)
    answer = llm.generate(PROMPT, params)[0].outputs[0]
    assert answer.text == text[: text.index(stop) + len(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def test_special_tokens_are_shown_on_demand(llm: LLM) -> None:
    (chat,) = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=60))
    answer = chat.outputs[0]
    assert answer.finish_reason == "stop"
    assert llm.tokenizer is not None
    end = llm.tokenizer.decode([answer.token_ids[-1]], skip_special_tokens=False)
    assert end.startswith("<|")
    params = SamplingParams(
        temperature=0, max_tokens=60, skip_special_tokens=False, include_stop_str_in_output=True
    )
    assert llm.chat(QUESTION, params)[0].outputs[0].text == answer.text + end
