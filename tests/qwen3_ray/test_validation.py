import pytest

from qwen3_ray.errors import PromptTooLongError, RequestError
from qwen3_ray.sampling_params import MAX_SEED, MIN_SEED, SamplingParams
from qwen3_ray.validation import draw_seed, validate


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
def test_a_stop_token_id_that_is_none_of_this_model_is_refused(bad: int) -> None:
    with pytest.raises(RequestError) as caught:
        check([1], max_tokens=1, stop_token_ids=(2, bad))
    assert caught.value.param == "stop_token_ids"


def test_drawn_seeds_are_repeatable_and_differ() -> None:
    seeds = [draw_seed(0, number) for number in range(100)]
    assert seeds == [draw_seed(0, number) for number in range(100)]
    assert len({*seeds, *(draw_seed(1, number) for number in range(100))}) == 200
    assert all(MIN_SEED <= seed <= MAX_SEED for seed in seeds)
    assert min(seeds) < 0 < max(seeds)
