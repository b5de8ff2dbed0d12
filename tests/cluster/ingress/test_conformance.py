"""HTTP and gRPC are two skins over one service: they agree field by field.

The fake replica's answer differs when any field of what it is given differs.
"""

import json
from typing import Any

import httpx
import pytest

from cluster.router.testing import FakeReplica
from protos.v1 import generate_pb2 as pb
from protos.v1 import generate_pb2_grpc as pb_grpc

Fields = dict[str, Any]

CASES: list[Fields] = [
    {"prompt": "hello", "seed": 1},
    {"prompt": [1, 2, 3], "seed": 1},
    {"prompt": "hello", "seed": -(2**63), "temperature": 0.7, "top_p": 0.9, "top_k": 40},
    {"prompt": "hello", "seed": 2**63 - 1, "temperature": 0.0, "max_tokens": 7},
    {"prompt": "hello", "seed": 5, "stop": ["e", "t", "a", "o", "i", "n"], "max_tokens": 50},
    {"prompt": "hello", "seed": 5, "stop_token_ids": list(range(97, 110)), "ignore_eos": True},
    {"prompt": "hello", "seed": 5, "min_p": 0.1, "repetition_penalty": 1.2},
    {"prompt": "hello", "seed": 5, "presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"prompt": "hello", "seed": 5, "logit_bias": {"5": 1.5, "97": -3}, "min_tokens": 2},
    {"prompt": "hello", "seed": 5, "bad_words": ["x", "no"], "allowed_token_ids": [97, 98]},
    {"prompt": "hello", "seed": 5, "include_stop_str_in_output": True, "stop": ["zz"]},
    {"prompt": "hello", "seed": 5, "skip_special_tokens": False},
    {"prompt": "hello", "seed": 5, "priority": -3, "cache_salt": "mine"},
    {"prompt": "hello", "seed": 5, "n": 3, "max_tokens": 4},
    {"prompt": "hello", "seed": 5, "n": 2, "logprobs": 2, "max_tokens": 4},
    {"prompt": "hello", "seed": 5, "logprobs": 0},
    {"prompt": [104, 233, 0, 111], "seed": 5, "echo": True, "logprobs": 1, "max_tokens": 3},
    {"prompt": "hello", "seed": 5, "echo": True, "logprobs": 2, "max_tokens": 0},
    {"prompt": "hello", "seed": 5, "echo": True, "max_tokens": 2, "n": 2},
    {"prompt": "hello", "seed": 5, "prompt_logprobs": 3, "n": 2, "max_tokens": 2},
    {"prompt": "hello", "seed": 5, "echo": True, "truncate_prompt_tokens": 3},
    {
        "prompt": "hello",
        "seed": 5,
        "echo": True,
        "truncate_prompt_tokens": 3,
        "truncation_side": "right",
    },
    *(
        {"prompt": "hello", "seed": 5, "structured_outputs": form}
        for form in (
            {"json": '{"type":"object"}', "disable_any_whitespace": True},
            {"json_object": True, "whitespace_pattern": " ?"},
            {"json": '{"properties":{}}', "disable_additional_properties": True},
            {"regex": "[a-z]+"},
            {"choice": ["yes", "no"]},
            {"grammar": 'root ::= "a"'},
        )
    ),
]
OUTSIDE_SAMPLING = {"prompt", "priority", "cache_salt", "truncation_side"}


def to_proto(fields: Fields) -> pb.GenerateRequest:
    values = {name: value for name, value in fields.items() if name not in OUTSIDE_SAMPLING}
    if "logit_bias" in values:
        values["logit_bias"] = {int(id_): bias for id_, bias in values["logit_bias"].items()}
    if "allowed_token_ids" in values:
        values["allowed_token_ids"] = pb.TokenIds(ids=values["allowed_token_ids"])
    if "structured_outputs" in values:
        form = dict(values["structured_outputs"])
        if "choice" in form:
            form["choice"] = pb.Choices(texts=form["choice"])
        values["structured_outputs"] = pb.StructuredOutputs(**form)
    outside = {name: fields[name] for name in OUTSIDE_SAMPLING - {"prompt"} if name in fields}
    message = pb.GenerateRequest(sampling=pb.SamplingParams(**values), **outside)
    if isinstance(fields["prompt"], str):
        message.prompt = fields["prompt"]
    else:
        message.prompt_token_ids.ids.extend(fields["prompt"])
    return message


def test_every_field_of_a_grpc_request_is_tried() -> None:
    sampled = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    outside = {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields}
    forms = {field.name for field in pb.StructuredOutputs.DESCRIPTOR.fields}
    assert sampled | outside - {"model", "sampling", "prompt_token_ids"} == {
        name for case in CASES for name in case
    }
    assert forms == {name for case in CASES for name in case.get("structured_outputs", ())}


def view_of_json(answer: dict[str, Any]) -> dict[str, object]:
    """The fields that both skins have, in plain values; ids and times differ by nature."""
    usage = answer.get("usage")
    if usage:
        usage = {**usage, "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]}
        del usage["prompt_tokens_details"]
    return {
        "model": answer["model"],
        "seed": answer["seed"],
        "system_fingerprint": answer["system_fingerprint"],
        "usage": usage,
        "choices": [
            {
                name: choice.get(name)
                for name in (
                    *("index", "text", "token_ids", "finish_reason", "stop_reason"),
                    *("logprobs", "prompt_logprobs"),
                )
            }
            for choice in answer["choices"]
        ],
    }


def view_of_proto(answer: pb.GenerateResponse | pb.GenerateChunk, fields: Fields) -> Fields:
    names = [field.name for field in pb.Usage.DESCRIPTOR.fields]
    has_usage = answer.HasField("usage")
    return {
        "model": answer.model,
        "seed": answer.seed,
        "system_fingerprint": answer.system_fingerprint,
        "usage": {name: getattr(answer.usage, name) for name in names} if has_usage else None,
        "choices": [view_of_choice(choice, fields) for choice in answer.choices],
    }


def view_of_choice(choice: pb.Choice, fields: Fields) -> dict[str, object]:
    stop = choice.WhichOneof("stop_reason")
    logprobs, prompt_logprobs = None, None
    if "logprobs" in fields:
        entries = list(choice.logprobs)
        if fields.get("echo"):
            entries = [*choice.prompt_logprobs, *entries]
        logprobs = [view_of_entry(entry, fields["logprobs"]) for entry in entries]
    if "prompt_logprobs" in fields and choice.prompt_logprobs:
        prompt_logprobs = [
            {entry.token_id: (entry.logprob, entry.rank)}
            | {
                top.token_id: (top.logprob, rank)
                for rank, top in enumerate(entry.top, start=1)
                if top.token_id != entry.token_id
            }
            for entry in choice.prompt_logprobs
        ]
    return {
        "index": choice.index,
        "text": choice.text,
        "token_ids": list(choice.token_ids),
        "finish_reason": choice.finish_reason if choice.HasField("finish_reason") else None,
        "stop_reason": getattr(choice, stop) if stop else None,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    }


def spelled(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def view_of_entry(entry: pb.TokenLogprobs, num_top: int) -> tuple[object, ...]:
    top = {spelled(top.token): top.logprob for top in entry.top[:num_top]}
    return spelled(entry.token), entry.logprob, top | {spelled(entry.token): entry.logprob}


def plain(view: Fields) -> Fields:
    """HTTP's logprobs in the form of `view_of_choice`; the prompt's first token has none."""
    for choice in view["choices"]:
        if (logprobs := choice["logprobs"]) is not None:
            columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
            rows = zip(*columns, strict=True)
            choice["logprobs"] = [row for row in rows if row[1] is not None]
        if choice["prompt_logprobs"] is not None:
            first, *rest = choice["prompt_logprobs"]
            assert first is None
            choice["prompt_logprobs"] = [
                {int(id_): (value["logprob"], value["rank"]) for id_, value in entry.items()}
                for entry in rest
            ]
    return view


@pytest.mark.parametrize("fields", CASES, ids=str)
async def test_whole_answers_agree(
    http: httpx.AsyncClient,
    stub: pb_grpc.GenerateServiceStub,
    replica: FakeReplica,
    fields: Fields,
) -> None:
    replica.num_cached_tokens = 2
    response = await http.post("/v1/completions", json={**fields, "return_token_ids": True})
    assert response.status_code == 200, response.text
    answer = await stub.Generate(to_proto(fields))
    assert plain(view_of_json(response.json())) == view_of_proto(answer, fields)
    assert answer.usage.cached_tokens == 2


@pytest.mark.parametrize("fields", CASES, ids=str)
async def test_chunks_agree(
    http: httpx.AsyncClient, stub: pb_grpc.GenerateServiceStub, fields: Fields
) -> None:
    body = {**fields, "return_token_ids": True, "stream": True}
    response = await http.post("/v1/completions", json=body)
    lines = [line for line in response.text.split("\n\n") if line][:-1]
    events = [plain(view_of_json(json.loads(line.removeprefix("data: ")))) for line in lines]
    answers = stub.GenerateStream(to_proto(fields))
    chunks = [view_of_proto(chunk, fields) async for chunk in answers]
    usages = [chunk.pop("usage") for chunk in chunks]  # HTTP sends it in a chunk of its own
    assert [usage is not None for usage in usages] == [False] * (len(chunks) - 1) + [True]
    for event in events:
        event.pop("usage")

    def by_index(view: Fields) -> int:  # within an index, the order stays
        return int(view["choices"][0]["index"])

    assert sorted(events, key=by_index) == sorted(chunks, key=by_index)
