"""EBNF as clients write it, read into a tree: GBNF, the notation of llama.cpp, vLLM and xgrammar.

    root  ::= (expr "=" ws term "\\n")+      # the first rule applied is `root`
    expr  ::= term ([-+*/] term)*
    term  ::= [a-z] [a-z0-9_]* ws | "(" ws expr ")" ws
    ws    ::= [ \\t\\n]{0,20}

Strings and character classes know the escapes \\n \\r \\t \\xHH \\uHHHH \\UHHHHHHHH; a backslash
before punctuation stands for that character. `.` is any character, a newline too. `( ) | * + ? {n}
{n,} {,m} {n,m}` mean what they mean in a regex, and an alternative may be empty. A rule ends where
the next one begins, so alternatives may go over many lines. Comments begin with `#`. Look-ahead,
macros and Lark's notation are not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

ROOT = "root"
MAX_REPETITIONS = 10_000
MAX_CODE_POINT = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Chars:
    """One character of a set: ranges of code points, sorted, with gaps between them."""

    ranges: Ranges


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """One after the other; the empty text when there is none."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One of several."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """`low` to `high` times, or without bound when `high` is None."""

    item: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What the rule of this name matches."""

    name: str


Node = Chars | Sequence | Choice | Repeat | Reference
Rules = dict[str, Node]


class EbnfError(Exception):
    """A text is no EBNF; the message says why, and in which line."""


_TOKEN = re.compile(
    r"(?P<space>(?:\s|#[^\n]*)+)"
    r"|(?P<rule>[A-Za-z_][\w-]*)\s*::="
    r"|(?P<name>[A-Za-z_][\w-]*)"
    r'|"(?P<text>(?:\\.|[^"\\])*)"'
    r"|\[(?P<chars>(?:\\.|[^\]\\])*)\]"
    r"|(?P<repeat>[*+?]|\{\s*\d*\s*(?:,\s*\d*\s*)?\})"
    r"|(?P<mark>[().|])",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|(.)", re.S)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}
_BOUNDS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def read_ebnf(text: str) -> Rules:
    """The rules of a grammar, by name.

    Raises:
        EbnfError: the text is no EBNF, or it names a rule that it does not have.
    """
    reader = _Reader(text)
    rules: Rules = {}
    while reader.kind != "end":
        if reader.kind != "rule":
            reader.fail("expected a rule: a name and ::=")
        name = reader.value
        if name in rules:
            reader.fail(f"the rule {name} is there already")
        reader.advance()
        rules[name] = _read_choice(reader)
    if ROOT not in rules:
        raise EbnfError(f"has no rule {ROOT}")
    for name in _references(rules.values()):
        if name not in rules:
            raise EbnfError(f"has no rule {name}")
    return rules


def _references(nodes: Iterable[Node]) -> Iterator[str]:
    """Names of the rules that nodes refer to, as often as they do."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if isinstance(node, Reference):
            yield node.name
        else:
            stack.extend(children(node))


def children(node: Node) -> tuple[Node, ...]:
    """The nodes that a node is made of."""
    match node:
        case Sequence(items) | Choice(items):
            return items
        case Repeat(item):
            return (item,)
    return ()


class _Reader:
    """The tokens of a text, one at a time."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = self._next = 0
        self.kind = "end"
        """The group of `_TOKEN` that matched."""
        self.value = ""
        self.advance()

    def advance(self) -> None:
        """Go on to the next token."""
        self.kind = "space"
        while self.kind == "space":
            self._start = self._next
            if self._start == len(self._text):
                self.kind = "end"
                return
            match = _TOKEN.match(self._text, self._start)
            if match is None or match.lastgroup is None:
                self.fail(f"unexpected {self._text[self._start :]!r:.20}")
            self.kind, self.value = match.lastgroup, match[match.lastgroup]
            self._next = match.end()

    def takes(self, mark: str) -> bool:
        """Whether the token is this mark; then goes on."""
        found = self.kind == "mark" and self.value == mark
        if found:
            self.advance()
        return found

    def fail(self, problem: str) -> NoReturn:
        line = self._text.count("\n", 0, self._start) + 1
        raise EbnfError(f"line {line}: {problem}")


def _read_choice(reader: _Reader) -> Node:
    items = [_read_sequence(reader)]
    while reader.takes("|"):
        items.append(_read_sequence(reader))
    return items[0] if len(items) == 1 else Choice(tuple(items))


def _read_sequence(reader: _Reader) -> Node:
    items: list[Node] = []
    while (item := _read_item(reader)) is not None:
        while reader.kind == "repeat":
            low, high = _bounds(reader)
            item = Repeat(item, low, high)
            reader.advance()
        items.append(item)
    return items[0] if len(items) == 1 else Sequence(tuple(items))


def _read_item(reader: _Reader) -> Node | None:
    if reader.takes("("):
        group = _read_choice(reader)
        if not reader.takes(")"):
            reader.fail("expected )")
        return group
    if reader.takes("."):
        return Chars(((0, MAX_CODE_POINT),))
    if reader.kind == "name":
        item: Node = Reference(reader.value)
    elif reader.kind == "text":
        codes = [code for code, _ in _characters(reader)]
        item = _one_or_sequence([Chars(((code, code),)) for code in codes])
    elif reader.kind == "chars":
        item = Chars(_read_chars(reader))
    else:
        return None
    reader.advance()
    return item


def _one_or_sequence(items: list[Chars]) -> Node:
    return items[0] if len(items) == 1 else Sequence(tuple(items))


def _bounds(reader: _Reader) -> tuple[int, int | None]:
    if reader.value in _BOUNDS:
        return _BOUNDS[reader.value]
    low_text, comma, high_text = reader.value[1:-1].partition(",")
    try:
        low = int(low_text.strip() or "0")
        high = int(high_text) if high_text.strip() else None if comma else low
    except ValueError:
        reader.fail("expected whole numbers between { and }")
    if high is not None and high < low:
        reader.fail(f"{{{low},{high}}} ends below its beginning")
    if max(low, high or 0) > MAX_REPETITIONS:
        reader.fail(f"at most {MAX_REPETITIONS} repetitions, got {max(low, high or 0)}")
    return low, high


def _characters(reader: _Reader) -> list[tuple[int, bool]]:
    """Code points of a string or a class, each with whether it was escaped."""
    result = []
    for match in _ESCAPE.finditer(reader.value):
        *digits, escaped, plain = match.groups()
        code = next((int(text, 16) for text in digits if text is not None), None)
        if code is None:
            character = plain if escaped is None else _CONTROLS.get(escaped, escaped)
            if escaped is not None and character == escaped and escaped.isalnum():
                reader.fail(f"unknown escape \\{escaped}")
            code = ord(character)
        if code > MAX_CODE_POINT or 0xD800 <= code <= 0xDFFF:
            reader.fail(f"U+{code:04X} is no character")
        result.append((code, plain is None))
    return result


def _read_chars(reader: _Reader) -> Ranges:
    characters = _characters(reader)
    negated = characters[:1] == [(ord("^"), False)]
    if negated:
        del characters[0]
    ranges = []
    index = 0
    while index < len(characters):
        low = high = characters[index][0]
        if index + 2 < len(characters) and characters[index + 1] == (ord("-"), False):
            high = characters[index + 2][0]
            index += 2
        if high < low:
            reader.fail(f"the range {chr(low)}-{chr(high)} ends before its beginning")
        ranges.append((low, high))
        index += 1
    merged = _merged(ranges)
    result = _complement(merged) if negated else merged
    if not result:
        reader.fail("a character class that no character is in")
    return result


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    edges = [-1, *(edge for pair in ranges for edge in pair), MAX_CODE_POINT + 1]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return tuple((before + 1, after - 1) for before, after in pairs if after - before > 1)
