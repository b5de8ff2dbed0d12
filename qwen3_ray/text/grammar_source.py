"""Structured outputs in llguidance's own notation, a variant of Lark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text.grammar_ebnf import read_ebnf
from qwen3_ray.text.grammar_lexemes import write_lark

if TYPE_CHECKING:
    from llguidance import LLParserLimits

# Without it, a mask allows of bytes that must come nothing but their usual tokens: known-good
# texts would be refused in other tokens, and each such mask would call back into Python.
_PREFIX = '%llguidance {"no_forcing": true}\n'
_ASCII = "dws"
"""In a regex these classes hold ASCII alone: digits that are read as numbers, and quick masks."""
_ANY_OBJECT = '{"type":"object"}'
_PLACE = re.compile(r"^at \d+\(\d+\): ")


def lark_of(form: StructuredOutputs) -> str:
    """The grammar of a form. Nothing is known yet of what the library says to it.

    Raises:
        EbnfError: the form is a `grammar` that is no EBNF.
    """
    if form.grammar is not None:
        return _PREFIX + write_lark(read_ebnf(form.grammar))
    if form.regex is not None:
        import llguidance  # noqa: PLC0415

        return f"{_PREFIX}start: T\nT: /{llguidance.regex_to_lark(form.regex, _ASCII)}/"
    if form.choice is not None:
        return f"{_PREFIX}start: T\nT: /{'|'.join(map(_literal, form.choice))}/"
    return f"{_PREFIX}start: %json {form.schema or _ANY_OBJECT}"


def is_simple(form: StructuredOutputs) -> bool:
    """Whether a form of this kind, within its bounds, is always a grammar and quickly compiled."""
    return form.choice is not None or form.json_object


def _literal(text: str) -> str:
    """A regex of one text."""
    return "".join(
        letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):X}}}"
        for letter in text
    )


def library_limits() -> LLParserLimits:
    """What one grammar may cost the library, in its own measures.

    Each is reached at a time when the rest of a step waits, but `initial_lexer_fuel`. They are the
    library's defaults but for the states, which stay in memory as long as the grammar: about 1 kB
    each, and a few thousand suffice for a long answer.
    """
    import llguidance  # noqa: PLC0415

    return llguidance.LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=500_000,
        precompute_large_lexemes=False,  # it would run them over the vocabulary while compiling
        verbose_errors=False,
    )


def explain(error: str) -> str:
    """An error of the library in one line, without the listing of the grammar."""
    if "NoExtension" in error:
        return "nothing can follow: the grammar contradicts itself"
    head = error.partition("\n   1 | ")[0].replace("<non-verbose/>", "").rpartition("error: ")[2]
    plain = _PLACE.sub("", head).removeprefix("failed to compile JSON schema: ")
    return f"{' '.join(plain.split()):.300}"
