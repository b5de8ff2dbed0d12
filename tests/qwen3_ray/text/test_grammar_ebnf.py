"""EBNF against a plain reading of its rules, on small grammars made at random and all short texts.

The tokens are single letters: what the lexer makes of a grammar shows in its masks.
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3_ray.errors import RequestError
from qwen3_ray.text.grammar import Grammar, Matcher
from qwen3_ray.text.grammar_ebnf import (
    Chars,
    Choice,
    EbnfError,
    Node,
    Reference,
    Repeat,
    Rules,
    read_ebnf,
)
from qwen3_ray.text.grammar_lexemes import write_lark
from qwen3_ray.text.grammar_vocabulary import GrammarVocabulary
from tests.qwen3_ray.text.grammar_rig import allowed_ids, make_tokenizer

LETTERS = "abc"
EOS = len(LETTERS)
MAX_LENGTH = 4

NAMES = ("root", "x", "y")
_leaves = st.sampled_from(
    ['"a"', '"b"', '"ab"', '"bc"', "[ab]", "[^a]", "[a-c]", "[ab]+", '""', "root", "x", "y"]
)
_nodes = st.recursive(
    _leaves,
    lambda nodes: st.one_of(
        st.lists(nodes, min_size=1, max_size=3).map(lambda items: f"({' '.join(items)})"),
        st.lists(nodes, min_size=1, max_size=3).map(lambda items: f"({' | '.join(items)})"),
        st.tuples(nodes, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,2}"])).map("".join),
    ),
    max_leaves=5,
)
GRAMMARS = st.tuples(*[st.lists(_nodes, min_size=1, max_size=3).map(" | ".join)] * 3).map(
    lambda bodies: "\n".join(f"{name} ::= {body}" for name, body in zip(NAMES, bodies, strict=True))
)


def language(rules: Rules, max_length: int = MAX_LENGTH) -> set[str]:
    """All texts up to a length that a grammar of letters makes: rules applied until none is new."""
    texts: dict[str, set[str]] = {name: set() for name in rules}
    before = None
    while before != texts:
        before = {name: set(known) for name, known in texts.items()}
        for name, node in rules.items():
            texts[name] = _texts(node, texts, max_length)
    return texts["root"]


def _texts(node: Node, known: dict[str, set[str]], max_length: int) -> set[str]:
    match node:
        case Chars(ranges):
            return {x for x in LETTERS for low, high in ranges if low <= ord(x) <= high}
        case Reference(name):
            return known[name]
        case Choice(items):
            return set().union(*(_texts(item, known, max_length) for item in items))
        case Repeat(item, low, high):
            part = _texts(item, known, max_length)
            most = low + max_length if high is None else high
            powers = [{""}]
            for _ in range(most):
                powers.append(_joined(powers[-1], part, max_length))
            return set().union(*powers[low:])
    texts = {""}
    for item in node.items:
        texts = _joined(texts, _texts(item, known, max_length), max_length)
    return texts


def _joined(starts: set[str], ends: set[str], max_length: int) -> set[str]:
    return {a + b for a in starts for b in ends if len(a) + len(b) <= max_length}


VOCABULARY = GrammarVocabulary(make_tokenizer(list(LETTERS)), [EOS], EOS + 1)


def texts_of(matcher: Matcher, text: str = "") -> Iterator[str]:
    """The texts, up to a length, that masks allow."""
    allowed = allowed_ids(matcher)
    if EOS in allowed:
        yield text
    for token_id in allowed:
        if token_id != EOS and len(text) < MAX_LENGTH:
            assert matcher.accept(token_id)
            yield from texts_of(matcher, text + LETTERS[token_id])
            matcher.rollback(1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ebnf=GRAMMARS)
def test_masks_allow_exactly_the_texts_of_the_rules(ebnf: str) -> None:
    rules = read_ebnf(ebnf)
    expected = language(rules)
    try:
        grammar = Grammar('%llguidance {"no_forcing": true}\n' + write_lark(rules), VOCABULARY)
    except RequestError:
        assert not expected  # rules that make no text
        return
    assert set(texts_of(grammar.matcher())) == expected


@pytest.mark.parametrize(
    ("ebnf", "problem"),
    [
        ('root = "a"', "line 1: expected a rule"),
        ('a ::= "a"', "has no rule root"),
        ("root ::= a\na ::= b", "has no rule b"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule root is there already"),
        ('root ::= ("a"', "line 1: expected )"),
        ('root ::= "a")', "line 1: expected a rule"),
        ('root ::= "a', "line 1: unexpected '\"a'"),
        ("root ::= [a", "line 1: unexpected '[a'"),
        ("root ::= []", "no character is in"),
        (r"root ::= [^\x00-\U0010FFFF]", "no character is in"),
        ("root ::= [z-a]", "ends before its beginning"),
        (r'root ::= "\q"', r"unknown escape \q"),
        (r'root ::= "\uD800"', "U+D800 is no character"),
        (r'root ::= "\UFFFFFFFF"', "U+FFFFFFFF is no character"),
        ('root ::= "a"{3,2}', "ends below its beginning"),
        ('root ::= "a"{10001}', "at most 10000 repetitions, got 10001"),
        ('root ::= "a"{,}\n  (= "b")', "line 2: unexpected '= \"b\")'"),
        ("start: /a/", "line 1: expected a rule"),
    ],
)
def test_what_is_no_ebnf_is_refused_with_its_place(ebnf: str, problem: str) -> None:
    with pytest.raises(EbnfError) as caught:
        read_ebnf(ebnf)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("chars", "ranges"),
    [
        ("[a]", "a"),
        ("[a-c]", "abc"),
        ("[a-cb-e]", "abcde"),
        ("[-a]", "-a"),
        ("[a-]", "-a"),
        (r"[a\-c]", "-ac"),
        (r"[\]\[\\\^]", "[\\]^"),
        ("[a^]", "^a"),
        (r"[\x41\u0042\U00000043\n\t\r]", "\t\n\rABC"),
        (r'"\""', '"'),
        ('"日"', "日"),
    ],
)
def test_character_classes_hold_what_they_say(chars: str, ranges: str) -> None:
    node = read_ebnf(f"root ::= {chars}")["root"]
    assert isinstance(node, Chars)
    assert (
        "".join(chr(code) for low, high in node.ranges for code in range(low, high + 1)) == ranges
    )


def test_rules_go_over_lines_and_comments() -> None:
    ebnf = """# first
    root-rule ::= # the name of the rule
        "a" # one
      | "b" "c#"{0}
      |
    root ::= root-rule . "c"
    """
    assert language(read_ebnf(ebnf)) == {f"{a}{b}c" for a in ("a", "b", "") for b in LETTERS}
