"""Forms, with outputs that they allow and others that they do not."""

from dataclasses import dataclass, field
from typing import Any

JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def record(*required: str, **properties: object) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Schema:
    schema: dict[str, Any]
    good: list[Any]
    bad: list[Any] = field(default_factory=list)


INTEGER = {"type": "integer"}
STRING = {"type": "string"}
_NODE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": record(
            "value",
            "next",
            value=INTEGER,
            next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        )
    },
}
_TOOLS = [
    record("tool", "args", tool={"const": f"tool_{index}"}, args=record("x", x=INTEGER))
    for index in range(20)
]

SCHEMAS = {
    "record": Schema(
        {"$schema": JSON_SCHEMA, "title": "a person"}
        | record("name", "age", name=STRING, age={"type": "integer", "minimum": 0, "maximum": 130}),
        [{"name": "Zoë", "age": 12}],
        [{"name": "Zoë", "age": 131}, {"name": "Zoë"}, {"age": 1, "name": ""}],
    ),
    "optional": Schema(
        record("b", a=INTEGER, b=INTEGER, c=INTEGER),
        [{"b": 1}, {"a": 1, "b": 2, "c": 3}],
        [{"a": 1}, {"b": 1, "d": 1}],
    ),
    "enum": Schema({"enum": ["red", 3, None, True]}, ["red", 3, None, True], ["blue", 4, False]),
    "const": Schema({"const": {"a": [1, "é"]}}, [{"a": [1, "é"]}], [{"a": [1]}, {"a": [1, "e"]}]),
    "types": Schema({"type": ["string", "null", "boolean"]}, ["a", None, False], [1, []]),
    "anything": Schema({}, [1.5, "a", {"x": [None]}, []]),
    "array": Schema(
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
        [[1], [1, 2.5, -3e2]],
        [[], [1, 2, 3, 4], ["1"]],
    ),
    "tuple": Schema(
        {"type": "array", "prefixItems": [INTEGER, STRING], "items": False},
        [[1, "a"], [1], []],
        [["a", 1], [1, "a", 2]],
    ),
    "anyOf": Schema(
        {"anyOf": [{"type": "string", "maxLength": 3}, INTEGER]}, ["日本", 5], ["abcd", 1.5]
    ),
    "oneOf": Schema(
        {"oneOf": _TOOLS}, [{"tool": "tool_7", "args": {"x": 1}}], [{"tool": "tool_20"}]
    ),
    "allOf": Schema(
        {
            "allOf": [
                {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
                {"type": "object", "properties": {"b": STRING}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"a": "x", "b": "x"}],
    ),
    "recursion": Schema(
        _NODE, [{"value": 1, "next": {"value": 2, "next": None}}], [{"value": 1, "next": 3}]
    ),
    "definitions": Schema(
        {"definitions": {"p": {"type": "array", "items": INTEGER, "minItems": 2}}}
        | record("p", p={"$ref": "#/definitions/p"}),
        [{"p": [1, 2]}],
        [{"p": [1]}],
    ),
    "pattern": Schema(
        {"type": "string", "pattern": r"^[A-Z]{2}-\d{3}$"}, ["AB-123"], ["AB-12", "xAB-123"]
    ),
    "pattern inside": Schema({"type": "string", "pattern": "b"}, ["a b c"], ["fo", ""]),
    "lengths": Schema(
        {"type": "string", "minLength": 2, "maxLength": 3}, ["日本", "abc"], ["日", "abcd"]
    ),
    "date": Schema({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01", "24-1-1"]),
    "uuid": Schema(
        {"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]
    ),
    "multipleOf": Schema({"type": "integer", "multipleOf": 5, "minimum": 10}, [15, 100], [5, 12]),
    "range": Schema(
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, [0.5, 1], [0, 1.5, -1]
    ),
    "patternProperties": Schema(
        {"type": "object", "patternProperties": {"^x_": INTEGER}, "additionalProperties": False},
        [{"x_a": 1}, {}],
        [{"y": 1}, {"x_a": "s"}],
    ),
    "additionalProperties": Schema(
        {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": STRING},
        [{"a": 1, "q": "s"}],
        [{"a": 1, "q": 2}],
    ),
    "number of properties": Schema(
        {"type": "object", "additionalProperties": INTEGER, "minProperties": 1, "maxProperties": 2},
        [{"a": 1}],
        [{}, {"a": 1, "b": 1, "c": 1}],
    ),
    "odd names": Schema(record('é"\\\n', **{'é"\\\n': INTEGER}), [{'é"\\\n': 1}], [{"e": 1}]),
}

UNSUPPORTED = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": INTEGER},
    "not": {"not": STRING},
    "if": {"if": STRING, "then": {"minLength": 3}},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "regex": {"type": "string", "format": "regex"},  # a format
    "remote": {"$ref": "https://example.org/remote.json"},
}
"""Schemas that are refused, by a word of the reason: never ignored."""

REGEXES = {
    "[0-9]+": (["12"], ["", "a", "1a"]),
    r"\+?\d{1,3}( \d{2,4}){2,3}": (["+49 30 1234"], ["+49", "+4\u0663 30 1234"]),
    "yes|no|maybe": (["yes", "maybe"], ["yess", "y"]),
    "a.*?b": (["aab", "aabab"], ["a", "ba"]),
    "[À-ÿ日本]+": (["àÿ日"], ["a"]),
    "^ab$": (["ab"], ["abc", "xab"]),
    "a.b": (["axb", "a日b"], ["a\nb", "ab"]),
    "(?s)a.b": (["a\nb"], ["ab"]),
    "(?i)abc": (["aBc"], ["abd"]),
    "(ab){2,4}": (["abab"], ["ab", "ababababab"]),
    "[^a]+": (["b\n"], ["ba"]),
    r"\$\{x\}/\"\n\t": (['${x}/"\n\t'], ["x"]),
    'x/\nstart: "q"': (['x/\nstart: "q"'], ["q"]),
    "(?P<year>[0-9]{4})-[01][0-9]": (["2024-12"], ["2024-22"]),
    "a*": (["", "aaa"], ["b"]),
    r"[\w.]+\s\W": (["a_1. !"], ["é !", "a\u2003!"]),
    r"[a-z]+@[a-z]+\.(com|org)": (["ab@c.org"], ["ab@c.orgx"]),
}

GRAMMARS = {
    'root ::= "a" root "b" | ""': (["", "aabb"], ["aab", "ba"]),
    'root ::= word "x" | "(" root ")"\nword ::= [a-z]+': (["abx", "(ax)", "xx"], ["x", "(abx"]),
    'root ::= "SELECT " column " from " table\ncolumn ::= "a" | "b"\ntable ::= [t-z]{1,3}': (
        ["SELECT a from tz"],
        ["SELECT c from t"],
    ),
    # llama.cpp's own example: every part swallows what may follow it
    r"""root  ::= (expr "=" ws term "\n")+
        expr  ::= term ([-+*/] term)*
        term  ::= ident | num | "(" ws expr ")" ws
        ident ::= [a-z] [a-z0-9_]* ws
        num   ::= [0-9]+ ws
        ws    ::= [ \t\n]*""": (["a+(b*2) = 3\n", "a=\n1\n\n"], ["a+b", "(a=1\n"]),
    r"""root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array  ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
        # Whitespace
        ws     ::= | " " | "\n" [ \t]{0,20}""": (
        ['{"a": [1, 2.5e1, "x\\n日"], "b": {}}', "{}"],
        ["[1]", '{"a"}', '{"a":1,}'],
    ),
}
"""EBNF, with outputs that it allows and others."""
