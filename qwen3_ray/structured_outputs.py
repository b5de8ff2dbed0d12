"""What the text of an output must look like: the form, and the bounds that every process checks.

Nothing here knows a grammar library. What passes is small and shallow, not yet known to be a
grammar: the engine's `GrammarCompiler` tells that.
"""

from __future__ import annotations

import json as json_text
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, fields
from typing import NoReturn

from qwen3_ray.errors import RequestError

MAX_SPEC_BYTES = 131_072
"""Of a schema's JSON, of a grammar, or of all choices together; UTF-8."""
MAX_REGEX_LENGTH = 4096
MAX_DEPTH = 64
"""Of values in a schema, and of parentheses in a regex or a grammar."""
MAX_CHOICES = 5000
"""Also the longest list in a schema, so of an `enum`."""
OPTIONS_KEY = "x-guidance"
"""Where a schema keeps its whitespace options: the library's own key, at the top of the schema."""

_OPTION_TYPES = {"whitespace_flexible": bool, "whitespace_pattern": str}
_SCHEMAS_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"enum", "const", "default", "examples"}
# Each alternative matches at any place where it begins, so that scanning is linear.
_REGEX_PART = re.compile(
    r"\\.?|\[\^?\]?(?:\\.?|[^\]\\])*(?:\]|\Z)|\(\?[a-zA-Z-]+\)"
    r"|\((?:\?(?:P?<\w+>|[a-zA-Z-]*:|<?[=!]))?|\{\d+,?\d*\}|.",
    re.DOTALL,
)
_GRAMMAR_PART = re.compile(
    r'"(?:\\.?|[^"\\])*(?:"|\Z)|\[(?:\\.?|[^\]\\])*(?:\]|\Z)|#[^\n]*|[()]', re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """Exactly one form that an output must have, with vLLM's names. Checked when built.

    The three options after the forms are kept in the schema, not as fields, and go with `json`
    and `json_object` alone.

    Raises:
        RequestError: not exactly one form is given, or it is beyond a bound; names the bound and
            the value.
    """

    json: str | Mapping[str, object] | None = None
    """A JSON schema, as JSON text or as the object. Stored as compact JSON text (`schema`)."""
    regex: str | None = None
    r"""Matches the whole output. Rust's syntax, so no look-around and no back-references; \d, \w
    and \s are ASCII."""
    choice: Sequence[str] | None = None
    """The output is one of these. Stored as a tuple."""
    grammar: str | None = None
    """EBNF in the GBNF notation (`qwen3_ray.text.grammar_ebnf`)."""
    json_object: bool = False
    """Any JSON object."""
    disable_any_whitespace: InitVar[bool] = False
    """No whitespace between the JSON's tokens."""
    disable_additional_properties: InitVar[bool] = False
    """Objects have no properties but those that the schema names, unless it says otherwise."""
    whitespace_pattern: InitVar[str | None] = None
    """A regex of the whitespace that may stand between two of the JSON's tokens."""

    def __post_init__(
        self,
        disable_any_whitespace: bool,
        disable_additional_properties: bool,
        whitespace_pattern: str | None,
    ) -> None:
        given = [field.name for field in fields(self) if self._is_given(field.name)]
        if len(given) != 1:
            _refuse(
                "needs exactly one of json, regex, choice, grammar and json_object, "
                f"got {', '.join(given) or 'none'}"
            )
        options = _whitespace_options(disable_any_whitespace, whitespace_pattern)
        has_options = bool(options) or disable_additional_properties
        if has_options and given[0] not in {"json", "json_object"}:
            _refuse(f"whitespace and property options go with json and json_object, not {given[0]}")
        if self.json is not None or has_options:
            schema = _read_schema({"type": "object"} if self.json is None else self.json)
            if disable_additional_properties:
                _close_objects(schema)
            if options:
                schema[OPTIONS_KEY] = options
            object.__setattr__(self, "json", _write_schema(schema))
            object.__setattr__(self, "json_object", False)
        self._check_texts()

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return next(field.name for field in fields(self) if self._is_given(field.name))

    @property
    def schema(self) -> str | None:
        """`json`, always JSON text."""
        return None if self.json is None else str(self.json)

    def _is_given(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value is not False

    def _check_texts(self) -> None:
        if not isinstance(self.json_object, bool):
            _refuse(f"json_object: must be true or false, got {self.json_object!r:.80}")
        if self.regex is not None:
            _check_text("regex", self.regex)
            if len(self.regex) > MAX_REGEX_LENGTH:
                _refuse(f"regex: at most {MAX_REGEX_LENGTH} characters, got {len(self.regex)}")
            _check_regex(self.regex)
        if self.grammar is not None:
            _check_text("grammar", self.grammar)
            _check_parentheses(self.grammar)
        if self.choice is not None:
            object.__setattr__(self, "choice", _read_choices(self.choice))


def _refuse(message: str) -> NoReturn:
    raise RequestError("structured_outputs", message)


def _check_text(form: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        _refuse(f"{form}: must be a text that is not empty, got {text!r:.80}")
    if len(text) <= MAX_SPEC_BYTES:  # else it has more bytes, too
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError:
            _refuse(f"{form}: must be Unicode text, got half a surrogate pair")
        if num_bytes <= MAX_SPEC_BYTES:
            return
    _refuse(f"{form}: at most {MAX_SPEC_BYTES} bytes of UTF-8, got {len(text)} characters")


def _read_choices(choices: object) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        _refuse(f"choice: must be a list of at least one text, got {choices!r:.80}")
    if len(choices) > MAX_CHOICES:
        _refuse(f"choice: at most {MAX_CHOICES} texts, got {len(choices)}")
    for text in choices:
        _check_text("choice", text)
    _check_text("choice", "".join(choices))
    return tuple(choices)


def _whitespace_options(disable: bool, pattern: str | None) -> dict[str, object]:
    if disable and pattern is not None:
        _refuse("disable_any_whitespace and whitespace_pattern contradict each other")
    if pattern is not None:
        _check_text("whitespace_pattern", pattern)
        return {"whitespace_pattern": pattern}
    return {"whitespace_flexible": False} if disable else {}


def _read_schema(given: object) -> dict[str, object]:
    """A schema of our own, within the bounds of depth and length."""
    if isinstance(given, str):
        _check_text("json", given)
    try:
        text = given if isinstance(given, str) else json_text.dumps(given, allow_nan=False)
        schema = json_text.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        _refuse(f"json: values may be nested {MAX_DEPTH} deep; these are nested far deeper")
    except (TypeError, ValueError) as error:
        _refuse(f"json: is not JSON: {error}")
    if not isinstance(schema, dict):
        _refuse(f"json: must be a schema that is an object, got {text:.80}")
    for value, depth in _walk(schema):
        if depth > MAX_DEPTH:
            _refuse(f"json: values may be nested {MAX_DEPTH} deep; these are nested deeper")
        if isinstance(value, list) and len(value) > MAX_CHOICES:
            _refuse(f"json: a list may hold {MAX_CHOICES} values, got one of {len(value)}")
    _check_options(schema.get(OPTIONS_KEY, {}))
    return schema


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _walk(value: object) -> Iterator[tuple[object, int]]:
    """Every value inside a value, itself included, and how deep it lies. No recursion."""
    stack = [(value, 1)]
    while stack:
        value, depth = stack.pop()
        yield value, depth
        if isinstance(value, dict | list):
            children = value.values() if isinstance(value, dict) else value
            stack.extend((child, depth + 1) for child in children)


def _check_options(options: object) -> None:
    if not isinstance(options, dict):
        _refuse(f"json: {OPTIONS_KEY} must be an object, got {options!r:.80}")
    for name, value in options.items():
        if name not in _OPTION_TYPES:
            _refuse(f"json: {OPTIONS_KEY} may hold {', '.join(_OPTION_TYPES)}, got {name!r:.80}")
        if not isinstance(value, _OPTION_TYPES[name]):
            _refuse(f"json: {OPTIONS_KEY} has no such {name}: {value!r:.80}")


def _close_objects(schema: object, *, by_name: bool = False) -> None:
    """Say `additionalProperties: false` where a schema names properties and says nothing.

    Args:
        schema: a schema, or a list of schemas.
        by_name: it is not a schema but a mapping of names to schemas.
    """
    if isinstance(schema, list):
        for value in schema:
            _close_objects(value)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if by_name or key not in _DATA:
            _close_objects(value, by_name=not by_name and key in _SCHEMAS_BY_NAME)
    if not by_name and ("properties" in schema or "patternProperties" in schema):
        schema.setdefault("additionalProperties", False)


def _write_schema(schema: dict[str, object]) -> str:
    try:
        text = json_text.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        _refuse("json: holds a number that is too large")
    _check_text("json", text)
    return text


def _check_regex(pattern: str) -> None:
    """Bound the groups, and refuse a group that only repeats and is repeated, as `(a+)+` is.

    Such a regex matches what the inner one matches; engines that backtrack take exponential time
    over it. Anything else that is wrong with a regex is for the library to say.
    """
    groups = [_Group()]
    for match in _REGEX_PART.finditer(pattern):
        part = match.group()
        group = groups[-1]
        if part[0] == "(" and not part.endswith(")"):
            groups.append(_Group())
            if len(groups) > MAX_DEPTH + 1:
                _refuse(f"regex: groups may be nested {MAX_DEPTH} deep; these are nested deeper")
        elif part == ")" and len(groups) > 1:
            groups.pop()
            groups[-1].add_atom(repeats=group.num_atoms == 1 and group.repeats)
        elif part in {"*", "+"} or (part[0] == "{" and part.endswith(",}")):
            if group.repeats:
                _refuse(
                    f"regex: repeats what only repeats, at character {match.start()}; one "
                    "repetition without bound inside another is refused"
                )
            group.repeats = True
        elif part == "|":
            group.num_atoms += 2
            group.repeats = False
        elif part not in {"^", "$", "?"} and not part.startswith(("{", "(?")):
            group.add_atom(repeats=False)


class _Group:
    """What has been read of a group of a regex."""

    def __init__(self) -> None:
        self.num_atoms = 0
        self.repeats = False
        """Whether the last atom is repeated without bound, or is a group that only repeats."""

    def add_atom(self, *, repeats: bool) -> None:
        self.num_atoms += 1
        self.repeats = repeats


def _check_parentheses(grammar: str) -> None:
    depth = 0
    for match in _GRAMMAR_PART.finditer(grammar):
        depth += {"(": 1, ")": -1}.get(match.group(), 0)
        if depth > MAX_DEPTH:
            _refuse(f"grammar: groups may be nested {MAX_DEPTH} deep; these are nested deeper")
