"""Oracles for the language of masks: jsonschema, `re`, and texts known to be good or bad."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text.grammar import Grammar, GrammarCompiler
from qwen3_ray.text.tokenizer import Tokenizer
from tests.qwen3_ray.text.grammar_cases import (
    GRAMMARS,
    REGEXES,
    SCHEMAS,
    UNSUPPORTED,
    Schema,
)
from tests.qwen3_ray.text.grammar_rig import draw, follow

END = 4070
OTHER_END = 4072
NUM_DRAWN = 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(DEMO_MODEL_DIR)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, [END, OTHER_END], tokenizer.num_tokens)
    yield compiler
    compiler.close()


def drawn_texts(grammar: Grammar, tokenizer: Tokenizer) -> list[str]:
    """Texts of finished outputs drawn under the masks."""
    outputs = [draw(grammar, tokenizer, END, seed) for seed in range(NUM_DRAWN)]
    finished = [output for output in outputs if output is not None]
    assert finished
    return [b"".join(map(tokenizer.output_bytes, output)).decode() for output in finished]


def verdict(grammar: Grammar, tokenizer: Tokenizer, text: str) -> str:
    """What `follow` says to a text, in its usual tokens and in single bytes alike."""
    single = {tokenizer.token_bytes(id_): id_ for id_ in range(tokenizer.num_tokens)}
    as_bytes = [single[bytes([byte])] for byte in text.encode()]
    verdicts = {follow(grammar, token_ids, END) for token_ids in (tokenizer.encode(text), as_bytes)}
    assert len(verdicts) == 1
    return verdicts.pop()


@pytest.mark.parametrize("case", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_masks_of_a_schema_allow_its_instances_and_nothing_else(
    compiler: GrammarCompiler, tokenizer: Tokenizer, case: Schema
) -> None:
    grammar = compiler.compile(StructuredOutputs(json=case.schema))
    validator = jsonschema.Draft202012Validator(case.schema)
    for text in drawn_texts(grammar, tokenizer):
        validator.validate(json.loads(text))
    for instance in case.good:
        for indent in (None, 1):
            text = json.dumps(instance, ensure_ascii=False, indent=indent)
            assert verdict(grammar, tokenizer, text) == "ends"
    for instance in case.bad:
        assert verdict(grammar, tokenizer, json.dumps(instance, ensure_ascii=False)) != "ends"


@pytest.mark.parametrize("word", UNSUPPORTED)
def test_a_keyword_that_would_not_be_kept_is_refused(compiler: GrammarCompiler, word: str) -> None:
    with pytest.raises(RequestError, match=word) as caught:
        compiler.compile(StructuredOutputs(json=UNSUPPORTED[word]))
    assert caught.value.param == "structured_outputs"


@pytest.mark.parametrize("pattern", REGEXES)
def test_a_regex_matches_the_whole_output(
    compiler: GrammarCompiler, tokenizer: Tokenizer, pattern: str
) -> None:
    grammar = compiler.compile(StructuredOutputs(regex=pattern))
    good, bad = REGEXES[pattern]
    for text in drawn_texts(grammar, tokenizer):
        assert re.fullmatch(pattern, text, re.ASCII), text
    for text in good:
        assert re.fullmatch(pattern, text, re.ASCII)
        assert verdict(grammar, tokenizer, text) == "ends"
    for text in bad:
        assert not re.fullmatch(pattern, text, re.ASCII)
        assert verdict(grammar, tokenizer, text) != "ends"


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("(?=a)a", "look-around"),
        (r"(a)\1", "backreferences"),
        ("(a", "unclosed group"),
        (r"\bfoo", "lookarounds"),
        ("[a&&b]", "contradicts itself"),
    ],
)
def test_a_regex_that_cannot_be_followed_is_refused(
    compiler: GrammarCompiler, regex: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=f"structured_outputs: regex: .*{reason}"):
        compiler.compile(StructuredOutputs(regex=regex))


@pytest.mark.parametrize("ebnf", GRAMMARS)
def test_a_grammar_takes_the_texts_that_its_rules_make(
    compiler: GrammarCompiler, tokenizer: Tokenizer, ebnf: str
) -> None:
    grammar = compiler.compile(StructuredOutputs(grammar=ebnf))
    good, bad = GRAMMARS[ebnf]
    assert [verdict(grammar, tokenizer, text) for text in good] == ["ends"] * len(good)
    assert "ends" not in [verdict(grammar, tokenizer, text) for text in bad]
    if "object" in ebnf:
        for text in drawn_texts(grammar, tokenizer):
            assert isinstance(json.loads(text, strict=False), dict)


CHOICES = ("yes", "yesterday", "no", 'é"\\/\n\x00', "日本", " ", "[a-z]*")


def test_a_choice_is_one_of_the_texts(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(StructuredOutputs(choice=CHOICES))
    drawn = drawn_texts(grammar, tokenizer)
    assert len(set(drawn)) > 2
    assert set(drawn) <= set(CHOICES)
    assert {verdict(grammar, tokenizer, text) for text in CHOICES} == {"ends"}
    assert verdict(grammar, tokenizer, "ye") == "open"
    assert verdict(grammar, tokenizer, "abc") == "refused"


def test_any_json_object_is_an_object(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(StructuredOutputs(json_object=True))
    for text in drawn_texts(grammar, tokenizer):
        assert isinstance(json.loads(text), dict)
    assert verdict(grammar, tokenizer, '{"a": [1, {"b": null}]}') == "ends"
    assert verdict(grammar, tokenizer, "[]") == "refused"
    assert verdict(grammar, tokenizer, " {}") == "refused"


@pytest.mark.parametrize(
    ("options", "compact", "spaced", "open_object"),
    [
        ({}, "ends", "ends", "ends"),
        ({"disable_any_whitespace": True}, "ends", "refused", "ends"),
        ({"whitespace_pattern": " ?"}, "ends", "refused", "ends"),
        ({"disable_additional_properties": True}, "ends", "ends", "refused"),
    ],
)
def test_options_narrow_a_schema(
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
    options: dict[str, Any],
    compact: str,
    spaced: str,
    open_object: str,
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    grammar = compiler.compile(StructuredOutputs(json=schema, **options))
    assert verdict(grammar, tokenizer, '{"a":1}') == compact
    assert verdict(grammar, tokenizer, '{\n  "a": 1}') == spaced
    assert verdict(grammar, tokenizer, '{"b":1}') == open_object
