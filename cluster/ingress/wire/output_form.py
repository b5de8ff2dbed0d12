"""The form that an output must have, in each of the ways in which HTTP clients ask for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs


class StructuredOutputsBody(BaseModel):
    """vLLM's `structured_outputs`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None


class _JsonSchemaBody(BaseModel):
    model_config = ConfigDict(strict=True)

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormatBody(BaseModel):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(strict=True)

    type: str
    json_schema: _JsonSchemaBody | None = None


Form = StructuredOutputsBody | ResponseFormatBody | list[str] | dict[str, Any] | str

_PLAIN_FORMS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
}
"""Fields of older vLLM and of SGLang, and what they are called now."""
FORM_FIELDS = ("structured_outputs", "response_format", *_PLAIN_FORMS)


def output_form(given: Mapping[str, Form]) -> StructuredOutputs | None:
    """The form that a request's `FORM_FIELDS` ask for; None if they ask for none.

    Raises:
        RequestError: there is more than one, or it cannot be had; names the field.
    """
    arguments = {name: _arguments(name, form) for name, form in given.items()}
    names = [name for name, values in arguments.items() if values is not None]
    if not names:
        return None
    if len(names) > 1:
        raise RequestError(names[1], f"is a second form of the output, beside {names[0]}")
    try:
        return StructuredOutputs(**(arguments[names[0]] or {}))
    except RequestError as error:
        raise RequestError(names[0], error.message) from None


def _arguments(name: str, form: Form) -> dict[str, Any] | None:
    """Arguments of `StructuredOutputs`; None if any output will do."""
    if isinstance(form, StructuredOutputsBody):
        return form.model_dump(by_alias=True, exclude_none=True)
    if not isinstance(form, ResponseFormatBody):
        return {_PLAIN_FORMS[name]: form}
    match form.type:
        case "text":
            return None
        case "json_object":
            return {"json_object": True}
        case "json_schema" if form.json_schema is not None:
            return {"json": form.json_schema.schema_}
        case "json_schema":
            raise RequestError(name, "needs json_schema for the type json_schema")
        case _:
            raise RequestError(
                name, f"type must be text, json_object or json_schema, got {form.type!r:.80}"
            )
