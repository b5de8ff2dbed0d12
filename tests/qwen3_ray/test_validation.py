from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import PromptTooLongError, RequestError
from qwen3_ray.sampling_params import MAX_SEED, MIN_SEED, SamplingParams
from qwen3_ray.text.tokenizer import Tokenizer
from qwen3_ray.validation import draw_seed, resolve_bad_words, truncate_prompt, validate


def check(token_ids: list[int], **settings: int | tuple[int, ...] | None) -> SamplingParams:
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    return validate(token_ids, params, max_model_len=10, vocab_size=50)


def test_no_max_tokens_means_all_the_room() -> None:
    assert check([1, 2, 3], max_tokens=None).max_tokens == 7


def test_what_fits_exactly_is_left_alone() -> None:
    params = SamplingParams(max_tokens=7, seed=3)
    assert validate([0, 49, 3], params, max_model_len=10, vocab_size=50) is params


def test_max_tokens_beyond_the_room_names_both_numbers_and_the_limit() -> None:
    with pytest.raises(RequestError, match=r"is 8, .* 3 tokens leave room for 7 .* 10 tokens") as e:
        check([1, 2, 3], max_tokens=8)
    assert e.value.param == "max_tokens"


@pytest.mark.parametrize("length", [10, 11, 1000])
def test_a_prompt_without_room_for_an_answer_is_too_long(length: int) -> None:
    with pytest.raises(PromptTooLongError, match=f"has {length} tokens.* 10 tokens"):
        check([1] * length, max_tokens=None)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="at least one token"):
        check([], max_tokens=1)


@pytest.mark.parametrize("bad", [True, 1.0, "1", None, -1, 50, 2**40])
def test_a_prompt_that_holds_no_token_id_of_this_model_is_refused(bad: int) -> None:
    with pytest.raises(RequestError) as caught:
        check([1, bad], max_tokens=1)
    assert caught.value.param == "prompt_token_ids"


@pytest.mark.parametrize("bad", [True, 1.0, 50, 2**40])
@pytest.mark.parametrize(
    "name", ["stop_token_ids", "allowed_token_ids", "logit_bias", "bad_words_token_ids"]
)
def test_an_id_in_the_parameters_that_is_none_of_this_model_is_refused(name: str, bad: int) -> None:
    values: dict[str, object] = {
        "logit_bias": {2: 1.0, bad: 1.0},
        "bad_words_token_ids": [[1], [2, bad]],
    }
    params = SamplingParams(**{name: values.get(name, [2, bad])})  # type: ignore[arg-type]
    with pytest.raises(RequestError) as caught:
        validate([1], params, max_model_len=20, vocab_size=50)
    assert caught.value.param == name


def test_all_room_must_be_enough_for_the_least_tokens() -> None:
    assert check([1] * 6, max_tokens=None, min_tokens=4).max_tokens == 4
    with pytest.raises(RequestError, match=r"max_tokens = 4, got 5") as caught:
        check([1] * 6, max_tokens=None, min_tokens=5)
    assert caught.value.param == "min_tokens"


def test_a_prompt_may_be_scored_without_an_output() -> None:
    assert check([1] * 9, max_tokens=0).max_tokens == 0


def test_a_top_k_beyond_the_vocabulary_is_all_of_it() -> None:
    assert check([1], max_tokens=1, top_k=2**40).top_k == 50
    assert check([1], max_tokens=1, top_k=50).top_k == 50
    assert check([1], max_tokens=1, top_k=-1).top_k == -1


def resume(output: Sequence[int], n: int = 1) -> None:
    params = SamplingParams(max_tokens=3, n=n)
    validate([1] * 6, params, max_model_len=10, vocab_size=50, output_token_ids=output)


def test_output_made_elsewhere_must_fit_and_hold_ids_of_this_model() -> None:
    resume([49] * 4)  # above max_tokens: the engine says that it has ended
    for output, n, param in (
        ([1] * 5, 1, "output_token_ids"),
        ([50], 1, "output_token_ids"),
        ([1], 2, "n"),
    ):
        with pytest.raises(RequestError) as caught:
            resume(output, n)
        assert caught.value.param == param


def letters(text: str) -> list[int]:
    return list(text.encode())


def test_bad_words_are_banned_as_they_are_and_after_a_space() -> None:
    params = SamplingParams(bad_words=["ab", " ab", "\n"], bad_words_token_ids=[[7]])
    resolved = resolve_bad_words(params, letters)
    assert resolved.bad_words == ()
    assert resolved.bad_words_token_ids == ((7,), (97, 98), (32, 97, 98), (10,), (32, 10))
    assert resolve_bad_words(resolved, letters) is resolved


def test_a_bad_word_of_one_token_after_a_space_is_banned_there_too() -> None:
    tokenizer = Tokenizer.load(DEMO_MODEL_DIR)
    assert len(tokenizer.encode("Darcy")) != len(tokenizer.encode(" Darcy")) == 1
    resolved = resolve_bad_words(SamplingParams(bad_words=["Darcy"]), tokenizer.encode)
    assert set(resolved.bad_words_token_ids) == {
        tuple(tokenizer.encode("Darcy")),
        tuple(tokenizer.encode(" Darcy")),
    }


def test_bad_words_that_nobody_could_resolve_are_refused() -> None:
    with pytest.raises(RequestError, match="bad_words: needs a tokenizer"):
        validate([1], SamplingParams(bad_words=["x"]), max_model_len=20, vocab_size=50)


@given(
    prompt=st.lists(st.integers(0, 9), max_size=12),
    num_tokens=st.integers(1, 14),
    max_tokens=st.one_of(st.none(), st.integers(0, 12)),
)
def test_truncation_keeps_the_end_or_the_beginning(
    prompt: list[int], num_tokens: int, max_tokens: int | None
) -> None:
    def cut(num_tokens: int | None, side: str = "left") -> Sequence[int]:
        return truncate_prompt(
            prompt,
            num_tokens,
            max_model_len=10,
            max_tokens=max_tokens,
            side=side,  # type: ignore[arg-type]
        )

    assert cut(None) is prompt
    assert cut(num_tokens) == prompt[max(0, len(prompt) - num_tokens) :]
    assert cut(num_tokens, "right") == prompt[:num_tokens]
    room = max(1, 10 - max(1, max_tokens or 1))
    assert cut(-1) == cut(room)


@pytest.mark.parametrize("bad", [0, -2, 1.0, "5", True])
def test_a_truncation_to_no_number_of_tokens_is_refused(bad: int) -> None:
    with pytest.raises(RequestError) as caught:
        truncate_prompt([1], bad, max_model_len=10, max_tokens=1)
    assert caught.value.param == "truncate_prompt_tokens"


def test_a_truncation_on_no_side_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        truncate_prompt([1], 1, max_model_len=10, max_tokens=1, side="top")  # type: ignore[arg-type]
    assert caught.value.param == "truncation_side"


def test_drawn_seeds_are_repeatable_and_differ() -> None:
    seeds = [draw_seed(0, number) for number in range(100)]
    assert seeds == [draw_seed(0, number) for number in range(100)]
    assert len({*seeds, *(draw_seed(1, number) for number in range(100))}) == 200
    assert all(MIN_SEED <= seed <= MAX_SEED for seed in seeds)
    assert min(seeds) < 0 < max(seeds)
