from collections.abc import Sequence

import pytest

from qwen3_ray.errors import RequestError
from qwen3_ray.text.chat_messages import ChatMessage, normalize_messages


def one(**message: object) -> dict[str, object]:
    (result,) = normalize_messages([{"role": "user", **message}])
    return result


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("text", "text"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
        (["one", {"type": "input_text", "text": "two"}], "one\ntwo"),
        ([{"type": "output_text", "text": "yes"}, {"type": "refusal", "refusal": "no"}], "yes\nno"),
    ],
)
def test_content_becomes_one_text(content: object, text: str) -> None:
    assert one(content=content) == {"role": "user", "content": text}


def test_no_content_is_empty_and_null_fields_are_left_out() -> None:
    assert one(name=None, tool_calls=None) == {"role": "user", "content": ""}
    assert one(content="x", name="Ann", extra=[1]) == {
        **{"role": "user", "content": "x"},
        **{"name": "Ann", "extra": [1]},
    }


@pytest.mark.parametrize("name", ["reasoning", "thinking", "reasoning_content"])
def test_reasoning_is_found_under_its_usual_name(name: str) -> None:
    assert one(**{name: "Hm."})["reasoning_content"] == "Hm."


@pytest.mark.parametrize(
    ("arguments", "value"),
    [('{"a": [1, "é"]}', {"a": [1, "é"]}), ("", {}), ({"a": 1}, {"a": 1}), (None, None)],
)
def test_arguments_of_tool_calls_become_json_values(arguments: object, value: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (result,) = normalize_messages([{"role": "assistant", "tool_calls": [call]}])
    assert result["tool_calls"] == [{**call, "function": {"name": "f", "arguments": value}}]


def test_messages_are_copied() -> None:
    messages = [{"role": "user", "content": "x", "more": {"a": [1]}}]
    normalize_messages(messages)[0]["more"]["a"].append(2)  # type: ignore[index]
    assert messages == [{"role": "user", "content": "x", "more": {"a": [1]}}]


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "at least one message"),
        ("Hello", "at least one message"),
        ({"role": "user"}, "at least one message"),
        (["Hello"], "message 0: must be an object with a role"),
        ([{"content": "x"}], "message 0: must be an object with a role"),
        ([{"role": 1}], "message 0: must be an object with a role"),
        ([{"role": "user"}, {"role": "user", "content": 7}], "message 1: content must be text"),
        ([{"role": "user", "content": [7]}], "message 0: a part of the content is no text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part of the content is no text"),
        ([{"role": "user", "content": [{"type": [], "text": ""}]}], "is no text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
            "is no text: only text is read, got .*image_url",
        ),
        ([{"role": "user", "tool_calls": "f"}], "tool_calls must be a list of objects"),
        ([{"role": "user", "tool_calls": ["f"]}], "tool_calls must be a list of objects"),
        ([{"role": "user", "tool_calls": [{"function": {"arguments": "{"}}]}], "are no JSON"),
        ([{"role": "user", "x": object()}], "plain JSON values"),
        ([{"role": "user", "x": float("nan")}], "plain JSON values"),
        ([{"role": "user", "x": nested(100_000)}], "plain JSON values"),
    ],
)
def test_what_is_no_chat_is_refused(messages: Sequence[ChatMessage], problem: str) -> None:
    with pytest.raises(RequestError, match=problem) as info:
        normalize_messages(messages)
    assert info.value.param == "messages"
