"""The reader of custom resources does what an API server does, on a schema made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.crd import StrictSchema

Json = dict[str, Any]

SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "default": 3, "minimum": 1},
        "note": {"type": "string", "nullable": True},
        "port": {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
        },
        "free": {
            "type": "object",
            "properties": {"known": {"type": "string"}},
            "x-kubernetes-preserve-unknown-fields": True,
        },
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "items": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "protocol": {"type": "string", "default": "TCP"},
                },
            },
        },
        "owner": {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self in ['a', 'b']", "message": "a or b"}],
        },
        "odd": {"type": "string", "x-kubernetes-validations": [{"rule": "self.size() > 3"}]},
    },
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> StrictSchema:
    version = {
        "name": "v1",
        "served": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC}}},
    }
    crd = {"spec": {"group": "x.io", "names": {"kind": "X"}, "versions": [version]}}
    path: Path = tmp_path_factory.mktemp("crd") / "x.yaml"
    path.write_text(yaml.safe_dump(crd))
    return StrictSchema(path, "v1")


def read(schema: StrictSchema, spec: Json) -> tuple[Json, list[str]]:
    stored = schema.stored({"spec": spec})
    return stored["spec"], schema.problems(stored)


@pytest.mark.parametrize(
    ("spec", "stored"),
    [
        ({}, {"size": 3}),
        ({"size": None}, {"size": 3}),
        ({"note": None}, {"note": None, "size": 3}),
        ({"labels": None}, {"size": 3}),
        ({"items": [{"name": "a"}]}, {"items": [{"name": "a", "protocol": "TCP"}], "size": 3}),
        ({"port": 80}, {"port": 80, "size": 3}),
        ({"port": "http"}, {"port": "http", "size": 3}),
        ({"free": {"unknown": 1}}, {"free": {"unknown": 1}, "size": 3}),
        ({"owner": "a"}, {"owner": "a", "size": 3}),
    ],
)
def test_what_is_right_is_stored_with_defaults_and_without_nulls(
    schema: StrictSchema, spec: Json, stored: Json
) -> None:
    assert read(schema, spec) == (stored, [])


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"sise": 1}, "'sise' was unexpected"),
        ({"items": [{"name": "a", "nam": "b"}]}, "spec.items.0"),
        ({"size": "3"}, "not of type 'integer'"),
        ({"size": True}, "not of type 'integer'"),
        ({"size": 0}, "minimum"),
        ({"port": True}, "not of type"),
        ({"free": {"known": 1}}, "not of type 'string'"),
        ({"labels": {"a": 1}}, "not of type 'string'"),
        ({"items": [{"name": "a"}, {"name": "a"}]}, "duplicate"),
        ({"owner": "c"}, "a or b"),
    ],
)
def test_what_is_wrong_is_named(schema: StrictSchema, spec: Json, problem: str) -> None:
    _, problems = read(schema, spec)
    assert any(problem in found for found in problems)


def test_a_rule_that_the_reader_does_not_know_never_passes(schema: StrictSchema) -> None:
    with pytest.raises(NotImplementedError, match=r"self\.size"):
        read(schema, {"odd": "long enough"})
