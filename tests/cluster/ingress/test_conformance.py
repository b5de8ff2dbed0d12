"""HTTP and gRPC are two skins over one service: they agree field by field."""

import json

import httpx
import pytest

from protos.v1 import generate_pb2 as pb
from protos.v1 import generate_pb2_grpc as pb_grpc

CASES: list[dict[str, object]] = [
    {"prompt": "hello", "seed": 1},
    {"prompt": [1, 2, 3], "seed": 1},
    {"prompt": "hello", "seed": -(2**63), "temperature": 0.7, "top_p": 0.9, "top_k": 40},
    {"prompt": "hello", "seed": 2**63 - 1, "temperature": 0.0, "max_tokens": 7},
    {"prompt": "hello", "seed": 5, "stop": ["e", "t", "a", "o", "i", "n"], "max_tokens": 50},
    {"prompt": "hello", "seed": 5, "stop_token_ids": list(range(97, 110)), "ignore_eos": True},
]


def to_proto(fields: dict[str, object]) -> pb.GenerateRequest:
    sampling = {name: value for name, value in fields.items() if name != "prompt"}
    message = pb.GenerateRequest(sampling=pb.SamplingParams(**sampling))
    if isinstance(fields["prompt"], str):
        message.prompt = fields["prompt"]
    else:
        message.prompt_token_ids.ids.extend(fields["prompt"])
    return message


def view_of_json(answer: dict[str, object]) -> dict[str, object]:
    """The fields that both skins have, in plain values; ids and times differ by nature."""
    usage = answer.get("usage")
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        "model": answer["model"],
        "seed": answer["seed"],
        "system_fingerprint": answer["system_fingerprint"],
        "usage": usage and {name: usage[name] for name in names},
        "choices": [
            {
                name: choice[name]
                for name in ("index", "text", "token_ids", "finish_reason", "stop_reason")
            }
            for choice in answer["choices"]
        ],
    }


def view_of_proto(answer: pb.GenerateResponse | pb.GenerateChunk) -> dict[str, object]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    has_usage = answer.HasField("usage")
    return {
        "model": answer.model,
        "seed": answer.seed,
        "system_fingerprint": answer.system_fingerprint,
        "usage": {name: getattr(answer.usage, name) for name in names} if has_usage else None,
        "choices": [view_of_choice(choice) for choice in answer.choices],
    }


def view_of_choice(choice: pb.Choice) -> dict[str, object]:
    stop = choice.WhichOneof("stop_reason")
    return {
        "index": choice.index,
        "text": choice.text,
        "token_ids": list(choice.token_ids),
        "finish_reason": choice.finish_reason if choice.HasField("finish_reason") else None,
        "stop_reason": getattr(choice, stop) if stop else None,
    }


@pytest.mark.parametrize("fields", CASES, ids=str)
async def test_whole_answers_agree(
    http: httpx.AsyncClient, stub: pb_grpc.GenerateServiceStub, fields: dict[str, object]
) -> None:
    response = await http.post("/v1/completions", json={**fields, "return_token_ids": True})
    assert response.status_code == 200
    assert view_of_json(response.json()) == view_of_proto(await stub.Generate(to_proto(fields)))


@pytest.mark.parametrize("fields", CASES, ids=str)
async def test_chunks_agree(
    http: httpx.AsyncClient, stub: pb_grpc.GenerateServiceStub, fields: dict[str, object]
) -> None:
    body = {**fields, "return_token_ids": True, "stream": True}
    response = await http.post("/v1/completions", json=body)
    lines = [line for line in response.text.split("\n\n") if line][:-1]
    events = [view_of_json(json.loads(line.removeprefix("data: "))) for line in lines]
    chunks = [view_of_proto(chunk) async for chunk in stub.GenerateStream(to_proto(fields))]
    usage = chunks[-1].pop("usage")  # HTTP sends it in a chunk of its own, if asked
    assert usage is not None
    events[-1].pop("usage")
    assert events == chunks
