"""The messages of a chat, brought into the one form that chat templates are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from qwen3_ray.errors import RequestError

ChatMessage = Mapping[str, object]

_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


def plain_json(param: str, value: object) -> object:
    """A copy of `value` in dicts, lists, strings, numbers, true, false and null.

    Raises:
        RequestError: something in it is none of these, or it is nested too deeply.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(param, f"must hold plain JSON values: {error}") from error


def normalize_messages(messages: Sequence[ChatMessage]) -> list[dict[str, object]]:
    """Copies of `messages` whose fields are as templates expect them.

    Content is a string: text parts are joined by line breaks, and none at all is empty text, as in
    vLLM. Other fields that are null are left out. Reasoning is found under `reasoning_content`,
    and the arguments of tool calls, which clients send as JSON text, are JSON values.

    Raises:
        RequestError: there is no message, one is not an object with a role, or a part is no text.
    """
    plain = plain_json("messages", messages)
    if not isinstance(plain, list) or not plain:
        raise RequestError("messages", "must be a list of at least one message")
    return [_normalize(index, message) for index, message in enumerate(plain)]


def _normalize(index: int, message: object) -> dict[str, object]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _error(index, "must be an object with a role")
    result = {name: value for name, value in message.items() if value is not None}
    result["content"] = _text_of(index, message.get("content"))
    reasoning = next((result[name] for name in _REASONING_FIELDS if name in result), None)
    if reasoning is not None:
        result["reasoning_content"] = reasoning
    if result.get("tool_calls"):
        result["tool_calls"] = _tool_calls(index, result["tool_calls"])
    return result


def _text_of(index: int, content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _error(index, f"content must be text or a list of parts, got {content!r:.80}")
    return "\n".join(_part_text(index, part) for part in content)


def _part_text(index: int, part: object) -> str:
    if isinstance(part, str):
        return part
    text = None
    if isinstance(part, dict):
        text = part.get(_TEXT_PARTS.get(str(part.get("type")), ""))
    if not isinstance(text, str):
        raise _error(
            index, f"a part of the content is no text: only text is read, got {part!r:.80}"
        )
    return text


def _tool_calls(index: int, calls: object) -> list[object]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _error(index, "tool_calls must be a list of objects")
    return [_tool_call(index, call) for call in calls]


def _tool_call(index: int, call: dict[str, object]) -> dict[str, object]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError) as error:
        raise _error(index, f"the arguments of a tool call are no JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _error(index: int, problem: str) -> RequestError:
    return RequestError("messages", f"message {index}: {problem}")
