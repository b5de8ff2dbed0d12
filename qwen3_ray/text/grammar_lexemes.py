"""A context-free grammar in the terms of a lexer that always takes the longest match.

llguidance cuts text into lexemes by regexes and parses the lexemes. Its lexer tries all lexemes
that the parser allows at once and ends one only where none of them can go on. In

    root ::= word "x" | "(" root ")"
    word ::= [a-z]+

a lexeme `[a-z]+` would swallow every x. So the largest regular parts of a grammar become lexemes,
and one that could swallow what follows another (or itself) is split into its parts, down to single
characters if need be. The result has exactly the grammar's language.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwen3_ray.text.grammar_automaton import Alphabet, Automaton, build, swallows
from qwen3_ray.text.grammar_ebnf import (
    ROOT,
    Chars,
    Choice,
    Node,
    Reference,
    Repeat,
    Rules,
    Sequence,
    children,
)

MAX_LEXEME_SIZE = 10_000
"""Character sets in a lexeme, those of rules it refers to included; larger parts are split."""


class Lexemes:
    """Which parts of a grammar are lexemes: the largest that are regular and swallow nothing."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._alphabet = Alphabet(rules.values())
        self._sizes = _sizes(rules)
        self._split: set[int] = set()
        """`id` of the nodes that are no lexemes although they are regular."""
        self._automata: dict[int, Automaton] = {}
        while swallowing := self._find_swallowing():
            self._split |= swallowing

    def __contains__(self, node: Node) -> bool:
        is_small = _size(node, self._sizes) <= MAX_LEXEME_SIZE
        return is_small and id(self.resolve(node)) not in self._split

    def resolve(self, node: Node) -> Node:
        """A lexeme's own node, behind all references to it."""
        while isinstance(node, Reference):
            node = self.rules[node.name]
        return node

    def automaton(self, lexeme: Node) -> Automaton:
        """The automaton of a lexeme's own node."""
        if id(lexeme) not in self._automata:
            self._automata[id(lexeme)] = build(lexeme, self.rules, self._alphabet)
        return self._automata[id(lexeme)]

    def _find_swallowing(self) -> set[int]:
        """Lexemes that may swallow what follows one that begins at the same place."""
        follow = _Follow(self)
        automata = {id_: self._automata[id_] for id_ in follow.lexemes}
        return {
            greedy_id
            for greedy_id, greedy in automata.items()
            for one_id, one in automata.items()
            if greedy.first_chars & one.first_chars
            and swallows(greedy, one, follow.lexemes[one_id])
        }


class _Follow:
    """For the lexemes and rules that `root` reaches: the characters that may come after each."""

    def __init__(self, lexemes: Lexemes) -> None:
        self._in = lexemes
        self._rules = lexemes.rules
        self._starts = dict.fromkeys(lexemes.rules, (False, 0))
        """By rule: whether it takes the empty text, and the characters it may begin with."""
        while self._grow_starts():
            pass
        self.lexemes: dict[int, int] = {}
        """By `id` of the lexeme's own node."""
        self._after: dict[str, int] = {}
        self._visit(Reference(ROOT), 0)
        while self._grow():
            pass

    def _grow_starts(self) -> bool:
        before = dict(self._starts)
        for name, node in self._rules.items():
            self._starts[name] = self._start(node)
        return self._starts != before

    def _start(self, node: Node) -> tuple[bool, int]:
        if node in self._in:
            automaton = self._in.automaton(self._in.resolve(node))
            return automaton.nullable, automaton.first_chars
        if isinstance(node, Reference):
            return self._starts[node.name]
        starts = [self._start(item) for item in children(node)]
        chars = 0
        if isinstance(node, Sequence):
            for nullable, first in starts:
                chars |= first
                if not nullable:
                    return False, chars
            return True, chars
        for _, first in starts:
            chars |= first
        is_optional = isinstance(node, Repeat) and node.low == 0
        return is_optional or any(nullable for nullable, _ in starts), chars

    def _grow(self) -> bool:
        before = dict(self._after), dict(self.lexemes)
        for name in list(self._after):
            self._visit(self._rules[name], self._after[name])
        return (self._after, self.lexemes) != before

    def _visit(self, node: Node, after: int) -> None:
        """Note that the characters `after` may come after a node, and what that means inside."""
        if node in self._in:
            lexeme = self._in.resolve(node)
            self._in.automaton(lexeme)
            self.lexemes[id(lexeme)] = self.lexemes.get(id(lexeme), 0) | after
        elif isinstance(node, Reference):
            self._after[node.name] = self._after.get(node.name, 0) | after
        elif isinstance(node, Sequence):
            for item in reversed(node.items):
                self._visit(item, after)
                nullable, first = self._start(item)
                after = first | (after if nullable else 0)
        elif isinstance(node, Repeat):
            repeats = node.high is None or node.high > 1
            self._visit(node.item, after | (self._start(node.item)[1] if repeats else 0))
        else:
            for item in children(node):
                self._visit(item, after)


def _sizes(rules: Rules) -> dict[str, int]:
    """Character sets in each rule, those it refers to included; beyond the limit if recursive."""
    sizes = dict.fromkeys(rules, MAX_LEXEME_SIZE + 1)
    before: dict[str, int] = {}
    while sizes != before:
        before = dict(sizes)
        for name, node in rules.items():
            sizes[name] = min(_size(node, sizes), MAX_LEXEME_SIZE + 1)
    return sizes


def _size(node: Node, sizes: dict[str, int]) -> int:
    if isinstance(node, Reference):
        return sizes[node.name]
    return isinstance(node, Chars) + sum(_size(item, sizes) for item in children(node))


def write_lark(rules: Rules) -> str:
    """The grammar in Lark's notation, as llguidance takes it; its start rule is `start`."""
    return "\n".join(_Writer(Lexemes(rules)).lines())


class _Writer:
    """Names rules `r0`, `r1`... and lexemes `T0`, `T1`... in the order in which they come up."""

    def __init__(self, lexemes: Lexemes) -> None:
        self._lexemes = lexemes
        self._names: dict[str | int, str] = {}
        self._pending: list[tuple[str, Node]] = []

    def lines(self) -> Iterator[str]:
        yield f"start: {self._rule(Reference(ROOT))}"
        while self._pending:
            name, node = self._pending.pop()
            if name[0] == "T":
                yield f"{name}: /{self._regex(node)}/"
            else:
                yield f"{name}: {self._rule(node)}"

    def _name(self, key: str | int, kind: str, node: Node) -> str:
        if key not in self._names:
            self._names[key] = f"{kind}{len(self._names)}"
            self._pending.append((self._names[key], node))
        return self._names[key]

    def _rule(self, node: Node) -> str:
        if node in self._lexemes:
            lexeme = self._lexemes.resolve(node)
            name = self._name(id(lexeme), "T", lexeme)
            return f"{name}?" if self._lexemes.automaton(lexeme).nullable else name
        match node:
            case Reference(name):
                return self._name(name, "r", self._lexemes.rules[name])
            case Repeat(item, low, high):
                return f"({self._rule(item)}){_bounds(low, high)}"
        separator = " | " if isinstance(node, Choice) else " "
        return "(" + separator.join(map(self._rule, children(node))) + ")"

    def _regex(self, node: Node) -> str:
        match node:
            case Reference(name):
                return self._regex(self._lexemes.rules[name])
            case Chars(ranges):
                return "[" + "".join(f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges) + "]"
            case Repeat(item, low, high):
                return f"(?:{self._regex(item)}){_bounds(low, high)}"
        separator = "|" if isinstance(node, Choice) else ""
        return "(?:" + separator.join(map(self._regex, children(node))) + ")"


def _bounds(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"
