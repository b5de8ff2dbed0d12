"""Every way to ask for a form of the output asks for the same thing."""

import json
from typing import Any

import pytest

from cluster.ingress.wire.completion_body import parse_completion
from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs

SCHEMA = {"type": "object", "properties": {"schema": {"type": "string"}}}


def form_of(**fields: object) -> StructuredOutputs | None:
    body = json.dumps({"prompt": "x", **fields}).encode()
    return parse_completion(body, {}).requests[0].params.structured_outputs


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json": SCHEMA}),
        ({"structured_outputs": {"regex": "a+", "json": None}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ("a", "b")}),
        ({"structured_outputs": {"grammar": "root ::= 'a'"}}, {"grammar": "root ::= 'a'"}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            {"json": SCHEMA, "disable_any_whitespace": True},
        ),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            {"json": SCHEMA},
        ),
        ({"response_format": {"type": "text"}, "regex": "a+"}, {"regex": "a+"}),
        ({"guided_json": SCHEMA}, {"json": SCHEMA}),
        ({"guided_json": json.dumps(SCHEMA)}, {"json": SCHEMA}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ("a", "b")}),
        ({"guided_grammar": "root ::= 'a'"}, {"grammar": "root ::= 'a'"}),
        ({"json_schema": json.dumps(SCHEMA)}, {"json": SCHEMA}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"ebnf": "root ::= 'a'"}, {"grammar": "root ::= 'a'"}),
    ],
    ids=str,
)
def test_a_form_is_understood(fields: dict[str, object], form: dict[str, Any]) -> None:
    assert form_of(**fields) == StructuredOutputs(**form)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}], ids=str)
def test_any_output_will_do_if_none_is_asked_for(fields: dict[str, object]) -> None:
    assert form_of(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs",
            "got regex, choice",
        ),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs", "regexp: Extra inputs"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs", "structural_tag"),
        ({"structured_outputs": "a"}, "structured_outputs", "got 'a'"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs", "json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs", "is not JSON"),
        ({"response_format": {"type": "xml"}}, "response_format", "got 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format",
            "schema",
        ),
        ({"response_format": "json"}, "response_format", "got 'json'"),
        ({"guided_choice": []}, "guided_choice", "at least one"),
        ({"guided_json": [1]}, "guided_json", "got"),
        ({"regex": "(a+)+"}, "regex", "repeats"),
        ({"regex": "a", "ebnf": "b"}, "ebnf", "second form of the output, beside regex"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "guided_regex",
            "beside response_format",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_named(fields: dict[str, object], param: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        form_of(**fields)
    assert caught.value.param == param
