"""Clients that stream completions: C of them, each with one request in flight.

They speak HTTP/1.1 over plain sockets, so that 16 of them cost the machine next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MAX_LINE = 1 << 20


@dataclass(slots=True)
class Stream:
    """When the pieces of one answer came."""

    sent_at: float
    stamps: list[float] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """From the request to the first piece."""
        return self.stamps[0] - self.sent_at


async def run_clients(
    port: int, prompts: Sequence[Sequence[Sequence[int]]], body: Mapping[str, object]
) -> dict[str, float]:
    """Values of a sample; `prompts` holds those of each client, asked for one after the other.

    `tokens_per_s` counts output tokens over the time until the last stream ends. `ttft_s` and
    `itl_s` (between two pieces of one stream) are medians, `_p99` the 99th percentiles.

    Raises:
        OSError: a request was refused, or its stream broke off.
    """

    async def client(own: Sequence[Sequence[int]]) -> list[Stream]:
        return [await _complete(port, {**body, "prompt": prompt}) for prompt in own]

    start = time.perf_counter()
    done = await asyncio.gather(*map(client, prompts))
    seconds = time.perf_counter() - start
    return sample_values([stream for streams in done for stream in streams], seconds)


def sample_values(streams: Sequence[Stream], seconds: float) -> dict[str, float]:
    """What the streams of one measurement, which took `seconds`, come to."""
    ttft = [stream.ttft_s for stream in streams]
    gaps = [later - earlier for one in streams for earlier, later in pairwise(one.stamps)]
    return {
        "tokens_per_s": sum(stream.num_tokens for stream in streams) / seconds,
        "ttft_s": statistics.median(ttft),
        "ttft_s_p99": percentile(ttft, 0.99),
        "itl_s": statistics.median(gaps),
        "itl_s_p99": percentile(gaps, 0.99),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


async def _complete(port: int, body: Mapping[str, object]) -> Stream:
    payload = json.dumps(body).encode()
    stream = Stream(time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_LINE)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    writer.write(head.encode() + payload)
    try:
        status = await reader.readline()
        is_chunked = False
        while line := (await reader.readline()).strip().lower():
            is_chunked = is_chunked or line == b"transfer-encoding: chunked"
        if b" 200 " not in status:
            raise OSError(f"{status!r}: {(await reader.read(2_000))!r}")
        async for line in _lines(reader, is_chunked):
            _take(stream, line.strip())
    finally:
        writer.close()
    if not stream.stamps:
        raise OSError("a stream without tokens")
    return stream


def _take(stream: Stream, line: bytes) -> None:
    """Read one line of server-sent events."""
    if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
        return
    event = json.loads(line[5:])
    if "error" in event:
        raise OSError(str(event["error"]))
    if event.get("choices"):
        stream.stamps.append(time.perf_counter())
    if event.get("usage"):
        stream.num_tokens = event["usage"]["completion_tokens"]


async def _lines(reader: asyncio.StreamReader, is_chunked: bool) -> AsyncIterator[bytes]:
    if not is_chunked:
        while line := await reader.readline():
            yield line
        return
    rest = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        rest += await reader.readexactly(size)
        await reader.readexactly(2)
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line
