"""A completion's body, and the events of its answer."""

import json
from typing import Any

import httpx

URL = "/v1/completions"

BODY = {"model": "fake", "prompt": "hello", "max_tokens": 5, "seed": 3}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, which must end with [DONE]."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
