"""Position automata of regular parts of a grammar, and what a longest-match lexer does to them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qwen3_ray.text.grammar_ebnf import (
    Chars,
    Choice,
    Node,
    Ranges,
    Reference,
    Repeat,
    children,
)


class Alphabet:
    """The classes of characters that no character set of some nodes tells apart, as bits."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        edges: set[int] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            stack.extend(children(node))
            if isinstance(node, Chars):
                edges.update(edge for low, high in node.ranges for edge in (low, high + 1))
        self._edges = sorted(edges)

    def bits(self, ranges: Ranges) -> int:
        """The classes that make up ranges of characters."""
        result = 0
        for low, high in ranges:
            first, stop = bisect_left(self._edges, low), bisect_left(self._edges, high + 1)
            result |= (1 << stop) - (1 << first)
        return result


@dataclass(slots=True)
class Automaton:
    """A Glushkov automaton: one state for each character set of an expression.

    Sets of states are ints, bit `i` for state `i`; sets of characters are an `Alphabet`'s bits.
    Bounded repetitions are taken as unbounded ones, so it may take more texts than the expression.
    """

    nullable: bool = False
    first: int = 0
    last: int = 0
    chars: list[int] = field(default_factory=list)
    """By state: the characters that lead to it."""
    follow: list[int] = field(default_factory=list)
    """By state: the states that may come next."""

    @property
    def first_chars(self) -> int:
        """Characters that a text may begin with."""
        return self.chars_of(self.first)

    def chars_of(self, states: int) -> int:
        """Characters that lead to any of some states."""
        result = 0
        for state in _members(states):
            result |= self.chars[state]
        return result


def build(node: Node, rules: Mapping[str, Node], alphabet: Alphabet) -> Automaton:
    """The automaton of a node without recursion; it refers to `rules`."""
    automaton = Automaton()
    automaton.nullable, automaton.first, automaton.last = _add(automaton, node, rules, alphabet)
    return automaton


def _add(
    automaton: Automaton, node: Node, rules: Mapping[str, Node], alphabet: Alphabet
) -> tuple[bool, int, int]:
    """Add the states of a node: whether it takes the empty text, its first and last states."""
    match node:
        case Reference(name):
            return _add(automaton, rules[name], rules, alphabet)
        case Chars(ranges):
            state = 1 << len(automaton.chars)
            automaton.chars.append(alphabet.bits(ranges))
            automaton.follow.append(0)
            return False, state, state
        case Choice(items):
            parts = [_add(automaton, item, rules, alphabet) for item in items]
            nullable = any(part[0] for part in parts)
            first = last = 0
            for part in parts:
                first, last = first | part[1], last | part[2]
            return nullable, first, last
        case Repeat(item, low, high):
            nullable, first, last = _add(automaton, item, rules, alphabet)
            if high == 0:
                return True, 0, 0
            if high is None or high > 1:
                _link(automaton, last, first)
            return nullable or low == 0, first, last
    nullable, first, last = True, 0, 0
    for item in node.items:
        item_nullable, item_first, item_last = _add(automaton, item, rules, alphabet)
        _link(automaton, last, item_first)
        first |= item_first if nullable else 0
        last = item_last | (last if item_nullable else 0)
        nullable = nullable and item_nullable
    return nullable, first, last


def _link(automaton: Automaton, states: int, followers: int) -> None:
    for state in _members(states):
        automaton.follow[state] |= followers


def _members(states: int) -> Iterator[int]:
    while states:
        lowest = states & -states
        yield lowest.bit_length() - 1
        states ^= lowest


def swallows(greedy: Automaton, one: Automaton, following: int) -> bool:
    """Whether a lexer of longest matches may miss an end of `one` because `greedy` can go on.

    That is: some text of `one`, not empty, is the beginning of a longer text of `greedy`, and goes
    on there with a character that may follow `one`.

    Args:
        greedy: may be `one` itself.
        one: a lexeme that may begin at the same place.
        following: characters that may come after `one`.
    """
    reached = [0] * len(one.chars)
    """By state of `one`: the states of `greedy` that the same text reaches."""
    work = list(_meet(greedy, one, greedy.first, one.first, reached))
    while work:
        state, other = work.pop()
        onward = greedy.follow[other]
        if one.last >> state & 1 and greedy.chars_of(onward) & following:
            return True
        work.extend(_meet(greedy, one, onward, one.follow[state], reached))
    return False


def _meet(
    greedy: Automaton, one: Automaton, others: int, states: int, reached: list[int]
) -> Iterator[tuple[int, int]]:
    """Pairs of a state of each that one character leads to, if they are new to `reached`."""
    for state in _members(states):
        for other in _members(others & ~reached[state]):
            if greedy.chars[other] & one.chars[state]:
                reached[state] |= 1 << other
                yield state, other
