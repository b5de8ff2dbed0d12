"""The streaming clients, against a server that says what the test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from benchmarks.peers.http_load import Stream, percentile, run_clients, sample_values

Loaded = tuple[dict[str, float], list[dict[str, object]]]

USAGE = {"choices": [], "usage": {"completion_tokens": 3}}
TOKEN = {"choices": [{"text": "a"}], "usage": None}


def event(content: object) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in (*chunks, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


async def load(answer: bytes, prompts: Sequence[Sequence[Sequence[int]]]) -> Loaded:
    """Values, and the bodies that the server was sent."""
    bodies: list[dict[str, object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await run_clients(port, prompts, {"max_tokens": 3}), bodies


async def test_tokens_of_all_streams_are_counted_by_their_usage() -> None:
    text = event(TOKEN) + event(TOKEN) + event(USAGE) + b"data: [DONE]\n\n"
    cut = len(text) // 2  # a chunk may end within a line
    values, bodies = await load(chunked(text[:cut], text[cut:]), [[[1], [2]], [[3]]])
    assert sorted(str(body["prompt"]) for body in bodies) == ["[1]", "[2]", "[3]"]
    assert all(body["max_tokens"] == 3 for body in bodies)
    assert values["tokens_per_s"] > 0


async def test_a_body_without_chunks_is_read_to_its_end() -> None:
    text = b"HTTP/1.1 200 OK\r\n\r\n" + event(TOKEN) + event(TOKEN) + event(USAGE)
    values, _ = await load(text, [[[1]]])
    assert values["ttft_s"] > 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 429 Too Many Requests\r\n\r\nbusy",
        chunked(event({"error": {"message": "no"}})),
        chunked(b"data: [DONE]\n\n"),
    ],
    ids=["refused", "error in the stream", "no token"],
)
async def test_a_request_that_fails_fails_the_measurement(answer: bytes) -> None:
    with pytest.raises(OSError, match=r"429|no|without tokens"):
        await load(answer, [[[1]]])


def test_values_are_medians_over_streams_and_gaps() -> None:
    streams = [Stream(0.0, [1.0, 1.5, 2.0], 3), Stream(0.0, [3.0, 3.5, 4.5], 3)]
    values = sample_values(streams, 4.5)
    assert values["tokens_per_s"] == pytest.approx(6 / 4.5)
    assert (values["ttft_s"], values["ttft_s_p99"]) == (2.0, 3.0)
    assert (values["itl_s"], values["itl_s_p99"]) == (0.5, 1.0)


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1, 4)])
def test_a_percentile_is_a_value_that_was_seen(share: float, expected: float) -> None:
    assert percentile([4, 2, 3, 1], share) == expected
