"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from starlette.types import Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events otherwise
]


class Events:
    """A response of events. It starts with the first one: until then it can still fail."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()  # several prompts' answers write
        self.started = False

    async def emit(self, data: str) -> None:
        """Send one event: JSON, as `event_data` gives it."""
        await self._write(data, more=True)

    async def end(self) -> None:
        await self._write("[DONE]", more=False)

    async def _write(self, data: str, *, more: bool) -> None:
        async with self._lock:
            if not self.started:
                self.started = True
                await self._send(
                    {"type": "http.response.start", "status": 200, "headers": _HEADERS}
                )
            body = f"data: {data}\n\n".encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": more})


def event_data(content: Mapping[str, object]) -> str:
    """An object as an event's data, which has no line breaks."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
