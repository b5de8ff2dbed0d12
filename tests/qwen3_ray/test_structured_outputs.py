"""The forms of structured outputs: what is stored, and what every process refuses at once."""

import json
import pickle
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import (
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_REGEX_LENGTH,
    MAX_SPEC_BYTES,
    StructuredOutputs,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('aé😀"\\'),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=10,
)
SCHEMAS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)
OBJECT = {"type": "object"}


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def refusal(**forms: object) -> str:
    with pytest.raises(RequestError) as caught:
        StructuredOutputs(**forms)  # type: ignore[arg-type]
    assert caught.value.param == "structured_outputs"
    return caught.value.message


@given(schema=SCHEMAS)
def test_a_schema_is_the_same_as_object_and_as_any_text_of_it(schema: dict[str, object]) -> None:
    forms = [
        StructuredOutputs(json=given)
        for given in (schema, json.dumps(schema, indent=2), json.dumps(schema))
    ]
    again = StructuredOutputs(json=forms[0].schema)
    assert len({*forms, again}) == 1
    assert json.loads(forms[0].schema or "") == schema
    assert pickle.loads(pickle.dumps(again)) == again


def test_a_schema_keeps_the_order_of_its_properties() -> None:
    schema = {"properties": {"b": {}, "a": {}}}
    assert StructuredOutputs(json=schema).schema == '{"properties":{"b":{},"a":{}}}'


def test_lists_are_stored_so_that_a_form_can_be_a_key() -> None:
    form = StructuredOutputs(choice=["yes", "no"])
    assert form.choice == ("yes", "no")
    assert {form: 1}[StructuredOutputs(choice=("yes", "no"))] == 1


@pytest.mark.parametrize(
    "forms",
    [
        {},
        {"json": OBJECT, "regex": "a"},
        {"choice": ["a"], "json_object": True},
        {"json_object": False},
        {"disable_any_whitespace": True},
    ],
    ids=str,
)
def test_exactly_one_form_must_be_given(forms: dict[str, object]) -> None:
    assert "exactly one of json, regex, choice, grammar and json_object" in refusal(**forms)


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        ({"json": "{"}, "is not JSON"),
        ({"json": "true"}, "a schema that is an object, got true"),
        ({"json": {"a": {1}}}, "is not JSON"),
        ({"json": '{"a":NaN}'}, "NaN is not a JSON number"),
        ({"json": '{"a":1e999}'}, "a number that is too large"),
        ({"json": '{"a":"\\ud800"}'}, "half a surrogate pair"),
        ({"json": {"x-guidance": {"lenient": True}}}, "got 'lenient'"),
        ({"json": {"x-guidance": {"whitespace_flexible": "x"}}}, "no such whitespace_flexible"),
        ({"json": {"x-guidance": []}}, "must be an object"),
        ({"regex": ""}, "not empty"),
        ({"regex": "\ud800"}, "half a surrogate pair"),
        ({"grammar": ""}, "not empty"),
        ({"choice": []}, "at least one text"),
        ({"choice": "abc"}, "must be a list"),
        ({"choice": ["a", ""]}, "not empty"),
        ({"choice": [1]}, "must be a text"),
        ({"json_object": 1}, "must be true or false"),
        ({"regex": "a", "disable_any_whitespace": True}, "not regex"),
        ({"choice": ["a"], "disable_additional_properties": True}, "not choice"),
        ({"grammar": "a", "whitespace_pattern": " "}, "not grammar"),
        (
            {"json": OBJECT, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "contradict",
        ),
    ],
    ids=str,
)
def test_what_is_no_form_is_refused_with_the_reason(forms: dict[str, object], message: str) -> None:
    assert message in refusal(**forms)


@pytest.mark.parametrize(
    ("inside", "beyond", "limit"),
    [
        ({"json": nested(MAX_DEPTH)}, {"json": nested(MAX_DEPTH + 1)}, MAX_DEPTH),
        ({"json": OBJECT}, {"json": "[" * 100_000}, MAX_DEPTH),
        ({"json": OBJECT}, {"json": '{"a":' * 20_000}, MAX_DEPTH),
        (
            {"json": {"enum": list(range(MAX_CHOICES))}},
            {"json": {"enum": list(range(100_000))}},
            MAX_CHOICES,
        ),
        ({"json": {"const": "é" * 65_000}}, {"json": {"const": "é" * 66_000}}, MAX_SPEC_BYTES),
        ({"choice": ["a"] * MAX_CHOICES}, {"choice": ["a"] * 100_000}, MAX_CHOICES),
        ({"choice": ["a" * 65_536] * 2}, {"choice": ["a" * 65_536] * 3}, MAX_SPEC_BYTES),
        ({"regex": "a" * MAX_REGEX_LENGTH}, {"regex": "a" * 4097}, MAX_REGEX_LENGTH),
        (
            {"regex": "(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH},
            {"regex": "(" * 1000 + "a" + ")" * 1000},
            MAX_DEPTH,
        ),
        ({"regex": r"\(" * 99 + "[(]" * 99}, {"regex": "(?:(?P<a>(?i:(" * 20}, MAX_DEPTH),
        ({"regex": "a"}, {"regex": "(" * 30_000 + ")" * 30_000}, MAX_REGEX_LENGTH),
        (
            {"grammar": "root ::= " + "(" * MAX_DEPTH + '"a"' + ")" * MAX_DEPTH},
            {"grammar": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000},
            MAX_DEPTH,
        ),
        ({"grammar": '"(((("' * 99 + "[(" * 99 + "]#" + "(" * 99}, {"grammar": "(" * 65}, 64),
        ({"grammar": "a" * MAX_SPEC_BYTES}, {"grammar": "a" * 131_073}, MAX_SPEC_BYTES),
        ({"regex": "(a+b)+(a{2})+(a|b+)+"}, {"regex": "(a+)+$"}, "repeats what only repeats"),
        ({"regex": "a+?"}, {"regex": "a++"}, "repeats what only repeats"),
        ({"regex": r"(\++)"}, {"regex": r"(?:((?P<n>[a+]{2,}))?)*"}, "only repeats"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bound_is_named_and_reached_but_not_passed(
    inside: dict[str, object], beyond: dict[str, object], limit: object
) -> None:
    StructuredOutputs(**inside)  # type: ignore[arg-type]
    assert str(limit) in refusal(**beyond)


@pytest.mark.parametrize(
    "forms",
    [
        {"json": "[" * MAX_SPEC_BYTES},
        {"json": '{"a":' * 26_000},
        {"json": {"enum": [str(number) for number in range(100_000)]}},
        {"regex": "(a+)+$"},
        {"regex": "[" * MAX_REGEX_LENGTH},
        {"grammar": "(" * 30_000},
        {"grammar": "[" * MAX_SPEC_BYTES},
        {"grammar": '"' * MAX_SPEC_BYTES},
        {"grammar": '"\\' * 65_536},
    ],
    ids=lambda forms: str(forms)[:30],
)
def test_the_checks_themselves_take_no_time(forms: dict[str, object]) -> None:
    start = time.perf_counter()
    with suppress(RequestError):
        StructuredOutputs(**forms)  # type: ignore[arg-type]
    assert time.perf_counter() - start < 1.0


def test_options_become_part_of_the_schema() -> None:
    schema = {
        "properties": {"properties": {"properties": {}}, "a": {"additionalProperties": True}},
        "$defs": {"d": {"anyOf": [{"patternProperties": {"x": {"properties": {}}}}]}},
        "const": {"properties": {}},
    }
    form = StructuredOutputs(
        json=schema, disable_additional_properties=True, disable_any_whitespace=True
    )
    closed = {"properties": {}, "additionalProperties": False}
    pattern = {"patternProperties": {"x": closed}, "additionalProperties": False}
    assert json.loads(form.schema or "") == {
        "properties": {"properties": closed, "a": {"additionalProperties": True}},
        "$defs": {"d": {"anyOf": [pattern]}},
        "const": {"properties": {}},
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    assert StructuredOutputs(json=form.schema) == form


def test_a_json_object_with_options_is_a_schema() -> None:
    form = StructuredOutputs(json_object=True, whitespace_pattern=" ?")
    assert not form.json_object
    assert json.loads(form.schema or "") == OBJECT | {"x-guidance": {"whitespace_pattern": " ?"}}
