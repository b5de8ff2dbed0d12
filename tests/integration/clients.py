"""The same request over HTTP and over gRPC, streamed or whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import httpx

from protos.v1.generate_pb2 import GenerateRequest, SamplingParams, TokenIds
from protos.v1.generate_pb2_grpc import GenerateServiceStub


@dataclass(frozen=True)
class Call:
    """A prompt and how to sample; greedy without a seed."""

    prompt: str | tuple[int, ...]
    max_tokens: int = 24
    seed: int | None = None
    ignore_eos: bool = False

    @property
    def temperature(self) -> float:
        return 0.0 if self.seed is None else 0.9

    def body(self, *, stream: bool) -> dict[str, object]:
        return {
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "ignore_eos": self.ignore_eos,
            "stream": stream,
        }

    def message(self) -> GenerateRequest:
        sampling = SamplingParams(
            temperature=self.temperature, max_tokens=self.max_tokens, ignore_eos=self.ignore_eos
        )
        if self.seed is not None:
            sampling.seed = self.seed
        if isinstance(self.prompt, str):
            return GenerateRequest(prompt=self.prompt, sampling=sampling)
        return GenerateRequest(prompt_token_ids=TokenIds(ids=self.prompt), sampling=sampling)


async def http_pieces(url: str, call: Call) -> AsyncIterator[str]:
    """Texts of a streamed completion, as its events come."""
    body = call.body(stream=True)
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{url}/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        last = None
        async for line in answer.aiter_lines():
            if not line:
                continue
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                yield _event_text(last)
        assert last == "[DONE]"


def _event_text(data: str) -> str:
    event = json.loads(data)
    assert "error" not in event, event
    return str(event["choices"][0]["text"])


async def grpc_pieces(target: str, call: Call) -> AsyncIterator[str]:
    """Texts of `GenerateStream`, as its chunks come."""
    async with grpc.aio.insecure_channel(target) as channel:
        stream = GenerateServiceStub(channel).GenerateStream(call.message(), timeout=120)
        async for chunk in stream:
            yield chunk.choices[0].text


async def text_of(pieces: AsyncIterator[str]) -> str:
    """All of a stream."""
    return "".join([piece async for piece in pieces])
