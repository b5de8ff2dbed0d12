"""What is not ours: refused if it would change the answer, else counted."""

import logging

import pytest

from cluster.ingress.fields import UnknownFields, check_extra_fields
from qwen3_ray.errors import RequestError

ASKED_FOR = {
    "best_of": 3,
    "suffix": "end",
    "logprob_token_ids": [1],
    "length_penalty": 2.0,
    "spaces_between_special_tokens": False,
    "add_special_tokens": False,
    "stream_interval": 2,
    "stop_regex": "x",
    "guided_whitespace_pattern": " ?",
    "return_token_offsets": True,
    "thinking_token_budget": 0,
    "use_beam_search": True,
    "prompt_embeds": "x",
    "kv_transfer_params": {},
    "vllm_xargs": {},
    "lora_path": "x",
    "custom_params": {},
    "return_hidden_states": True,
}
NEUTRAL = {
    "best_of": 1,
    "suffix": "",
    "length_penalty": 1.0,
    "spaces_between_special_tokens": True,
    "add_special_tokens": True,
    "stream_interval": 1,
    "use_beam_search": False,
}


@pytest.mark.parametrize("name", ASKED_FOR)
def test_a_field_that_we_do_not_support_is_named(name: str) -> None:
    with pytest.raises(RequestError, match="not supported") as caught:
        check_extra_fields({name: ASKED_FOR[name]})
    assert caught.value.param == name
    assert check_extra_fields({name: None}) == ()


@pytest.mark.parametrize("name", NEUTRAL)
def test_its_default_may_be_spelled_out(name: str) -> None:
    assert check_extra_fields({name: NEUTRAL[name]}) == ()


@pytest.mark.parametrize(
    "fields", [{"best_of": True}, {"use_beam_search": 0}, {"add_special_tokens": 1}], ids=str
)
def test_a_boolean_is_not_a_number(fields: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        check_extra_fields(fields)


def test_unknown_fields_are_told_and_harmless_ones_are_not() -> None:
    extra = {"user": "me", "session_id": "s", "request_id": "r", "foo": 1, "bar": None}
    assert set(check_extra_fields(extra)) == {"foo", "bar"}


def test_an_unknown_field_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    unknown = UnknownFields()
    with caplog.at_level(logging.WARNING):
        unknown.note(["foo", "bar"])
        unknown.note(["foo"])
    assert unknown.counts == {"foo": 2, "bar": 1}
    assert len(caplog.records) == 2


def test_what_is_kept_of_unknown_fields_is_bounded() -> None:
    unknown = UnknownFields()
    unknown.note(f"{'x' * 10}-{number}" for number in range(10_000))
    unknown.note(["y" * 1_000_000])
    assert len(unknown.counts) <= 256
    assert max(map(len, unknown.counts)) <= 64
