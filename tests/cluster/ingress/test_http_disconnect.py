"""The work behind an HTTP request stops with its client."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.ingress.http_api import create_app
from cluster.router.router import Router
from cluster.router.testing import FakeReplica
from tests.cluster.ingress.rig import BODY, URL


class Client:
    """Speaks ASGI itself, to leave when it likes."""

    def __init__(self, body: dict[str, object]) -> None:
        self._body = json.dumps(body).encode()
        self._requested = False
        self.left = asyncio.Event()
        self.messages: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self._requested:
            await self.left.wait()
            return {"type": "http.disconnect"}
        self._requested = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def call(self, app: Callable[..., Awaitable[None]]) -> Awaitable[None]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": URL,
            "raw_path": URL.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"fake")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        return app(scope, self.receive, self.send)


@pytest.mark.parametrize("hold_after", [0, 2], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hello", ["hello", "world"]], ids=["one", "two"])
async def test_the_work_stops_when_the_client_leaves(
    router: Router, replica: FakeReplica, prompt: object, stream: bool, hold_after: int
) -> None:
    replica.hold_after = hold_after
    client = Client({**BODY, "prompt": prompt, "stream": stream})
    serving = asyncio.ensure_future(client.call(create_app(router)))
    num_streams = 1 if prompt == "hello" else 2
    await replica.wait(num_submits=num_streams)
    assert replica.aborted == []
    client.left.set()
    await replica.wait(num_aborted=num_streams)
    async with asyncio.timeout(10):
        await serving
    assert not any(message.get("body", b"").endswith(b"[DONE]\n\n") for message in client.messages)


async def test_the_work_stops_when_serve_cancels_the_handler(
    router: Router, replica: FakeReplica
) -> None:
    replica.hold_after = 2
    client = Client({**BODY, "stream": True})
    serving = asyncio.ensure_future(client.call(create_app(router)))
    await replica.wait(num_submits=1)
    serving.cancel()
    await replica.wait(num_aborted=1)
    await asyncio.wait([serving])
    assert serving.cancelled()
