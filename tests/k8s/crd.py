"""Reads a custom resource as an API server would: prune nulls, fill defaults, check strictly."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Json = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
PLAIN_KEYWORDS = (
    *("enum", "format", "pattern", "required", "minimum", "maximum"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
)


class StrictSchema:
    """The schema of one served version of a CRD, closed against unknown fields."""

    def __init__(self, path: Path, version: str) -> None:
        crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        versions = {v["name"]: v for v in crd["spec"]["versions"] if v["served"]}
        self.api_version = f"{crd['spec']['group']}/{version}"
        self.kind: str = crd["spec"]["names"]["kind"]
        self._schema: Json = versions[version]["schema"]["openAPIV3Schema"]
        self._validator = jsonschema.Draft202012Validator(_closed(self._schema))

    def stored(self, resource: Json) -> Json:
        """`resource` without the nulls that it may not hold and with the defaults filled in."""
        filled: Json = _prune_and_default(copy.deepcopy(resource), self._schema)
        return filled

    def problems(self, stored: Json) -> list[str]:
        """What an API server would answer; empty when it would keep `stored`."""
        found = [
            f"{_dotted(error.absolute_path)}: {error.message}"
            for error in self._validator.iter_errors(stored)
        ]
        return found + list(_extensions(stored, self._schema, ""))


def _dotted(path: Any) -> str:  # noqa: ANN401 - a deque of keys and indices, untyped upstream
    return ".".join(str(part) for part in path) or "(root)"


def _children(value: object, schema: Json) -> Iterator[tuple[object, object, Json]]:
    """(key, value, schema) of everything directly inside `value` that has a schema."""
    if isinstance(value, dict):
        for key, child in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                yield key, child, inner
    elif isinstance(value, list) and "items" in schema:
        for index, child in enumerate(value):
            yield index, child, schema["items"]


def _prune_and_default(value: Any, schema: Json) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if value.get(key, ...) is None and not inner.get("nullable"):
                del value[key]
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
    for key, child, inner in list(_children(value, schema)):
        value[key] = _prune_and_default(child, inner)
    return value


def _closed(schema: Json) -> Json:
    """The JSON schema that refuses what the API server's strict field validation refuses."""
    keep = {key: schema[key] for key in PLAIN_KEYWORDS if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        return {**keep, "type": ["integer", "string"]}
    if "type" in schema:
        keep["type"] = [schema["type"], "null"] if schema.get("nullable") else schema["type"]
    if "items" in schema:
        keep["items"] = _closed(schema["items"])
    if "properties" in schema:
        keep["properties"] = {key: _closed(x) for key, x in schema["properties"].items()}
        keep["additionalProperties"] = bool(schema.get(PRESERVE))
    elif isinstance(schema.get("additionalProperties"), dict):
        keep["additionalProperties"] = _closed(schema["additionalProperties"])
    return keep


def _extensions(value: object, schema: Json, path: str) -> Iterator[str]:
    """Violations of list maps, list sets and CEL rules, which plain JSON schema cannot say."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if not _rule(rule["rule"])(value):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, list) and schema.get("x-kubernetes-list-type") in ("map", "set"):
        keys = schema.get("x-kubernetes-list-map-keys", ())
        names = [tuple(item.get(k) for k in keys) if keys else item for item in value]
        yield from (f"{path}: duplicate {n}" for n in names if names.count(n) > 1)
    for key, child, inner in _children(value, schema):
        yield from _extensions(child, inner, f"{path}.{key}".lstrip("."))


def _rule(rule: str) -> Callable[[object], bool]:
    """The CEL rules that KubeRay's schema has; an unknown one fails rather than passes."""
    if rule == "self == oldSelf":
        return lambda _: True  # only an update can break it
    if rule.startswith("self in ["):
        allowed = ast.literal_eval(rule.removeprefix("self in "))
        return lambda value: value in allowed
    raise NotImplementedError(f"CEL rule {rule!r}")
