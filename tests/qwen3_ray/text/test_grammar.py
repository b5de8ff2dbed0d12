"""Matchers: masks and ends, replay and rollback, bounds."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text import grammar as grammar_module
from qwen3_ray.text import grammar_source
from qwen3_ray.text.grammar import MAX_CACHED_GRAMMARS, Grammar, GrammarCompiler
from qwen3_ray.text.tokenizer import Tokenizer
from tests.qwen3_ray.text.grammar_cases import SCHEMAS
from tests.qwen3_ray.text.grammar_rig import allowed_ids, draw, make_tokenizer

A, B, AB, C, EOS, OTHER_EOS, IMAGE = range(7)
"""Tokens of the made-up tokenizer."""
END = 4070


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer.load(DEMO_MODEL_DIR)


@pytest.fixture(scope="module")
def compiler(demo: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(demo, [END], demo.num_tokens)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def tiny() -> Iterator[GrammarCompiler]:
    """Tokens a, b, ab and c, two ends, a special token, and 93 logits that mean nothing."""
    compiler = GrammarCompiler(make_tokenizer(["a", "b", "ab", "c"]), [EOS, OTHER_EOS, 50, -1], 100)
    yield compiler
    compiler.close()


def choose(compiler: GrammarCompiler, *texts: str) -> Grammar:
    return compiler.compile(StructuredOutputs(choice=texts))


def test_every_end_is_allowed_exactly_where_the_output_may_end(tiny: GrammarCompiler) -> None:
    matcher = choose(tiny, "a", "abc").matcher()
    assert allowed_ids(matcher) == [A, AB]
    assert not matcher.accept(EOS)
    assert not matcher.is_complete
    assert matcher.accept(A)
    assert allowed_ids(matcher) == [B, EOS, OTHER_EOS]
    assert not matcher.is_complete
    assert matcher.accept(B)
    assert allowed_ids(matcher) == [C]
    assert matcher.accept(C)
    assert allowed_ids(matcher) == [EOS, OTHER_EOS]
    assert matcher.is_complete
    assert matcher.accept(OTHER_EOS)
    assert allowed_ids(matcher) == []
    assert matcher.is_complete
    assert not matcher.accept(EOS)


def test_an_empty_output_may_end_at_once(tiny: GrammarCompiler) -> None:
    matcher = tiny.compile(StructuredOutputs(regex="c*")).matcher()
    assert allowed_ids(matcher) == [C, EOS, OTHER_EOS]
    assert matcher.accept(OTHER_EOS)


def test_special_tokens_and_unknown_ids_never_come(tiny: GrammarCompiler) -> None:
    matcher = tiny.compile(StructuredOutputs(regex="(?s).*")).matcher()
    assert allowed_ids(matcher) == [A, B, AB, C, EOS, OTHER_EOS]
    for token_id in (IMAGE, 7, 50, 99, 100, -1):
        assert not matcher.accept(token_id)
    assert matcher.accept(A)


@pytest.mark.parametrize(
    ("num_texts", "vocab_size"), [(29, 32), (29, 33), (28, 32), (61, 64), (29, 31), (20, 10)]
)
def test_masks_end_at_the_smaller_of_tokens_and_logits(num_texts: int, vocab_size: int) -> None:
    texts = [chr(ord("A") + index) for index in range(num_texts)]
    eos = num_texts
    compiler = GrammarCompiler(make_tokenizer(texts), [eos], vocab_size)
    matcher = choose(compiler, *texts).matcher()
    mask = np.full((vocab_size + 31) // 32, -1, np.int32)
    matcher.fill_mask(mask)
    assert allowed_ids(matcher) == list(range(min(num_texts, vocab_size)))
    assert matcher.accept(0)
    assert allowed_ids(matcher) == ([eos] if eos < vocab_size else [])
    assert matcher.is_complete
    compiler.close()


def test_a_model_without_an_end_of_text_completes_all_the_same() -> None:
    compiler = GrammarCompiler(make_tokenizer(["a", "b"]), [], 5)
    matcher = choose(compiler, "ab").matcher()
    assert matcher.accept(A)
    assert not matcher.is_complete
    assert matcher.accept(B)
    assert matcher.is_complete
    assert allowed_ids(matcher) == []
    compiler.close()


def test_a_token_that_may_not_come_changes_nothing(tiny: GrammarCompiler) -> None:
    matcher = choose(tiny, "abab").matcher()
    assert matcher.accept(AB)
    for token_id in (B, C, EOS, IMAGE):
        assert not matcher.accept(token_id)
        assert allowed_ids(matcher) == [A, AB]
    assert matcher.accept(AB)


@pytest.mark.parametrize("name", ["record", "recursion", "oneOf", "array", "anything"])
def test_replay_and_rollback_are_the_incremental_run_at_every_cut(
    compiler: GrammarCompiler, demo: Tokenizer, name: str
) -> None:
    grammar = compiler.compile(StructuredOutputs(json=SCHEMAS[name].schema))
    outputs = [draw(grammar, demo, END, seed) for seed in range(4)]
    for output in filter(None, outputs):
        token_ids = [*output, END]
        matcher = grammar.matcher()
        masks = [allowed_ids(matcher)]
        for token_id in token_ids:
            assert matcher.accept(token_id)
            masks.append(allowed_ids(matcher))
        for cut in range(len(token_ids) + 1):
            replayed = grammar.matcher()
            assert all(map(replayed.accept, token_ids[:cut]))
            assert allowed_ids(replayed) == masks[cut]
        pick = random.Random(0)
        place = len(token_ids)
        for _ in range(30):
            count = pick.randint(0, min(5, place))
            matcher.rollback(count)
            place -= count
            assert allowed_ids(matcher) == masks[place]
            forward = token_ids[place : place + pick.randint(0, 5)]
            assert all(map(matcher.accept, forward))
            place += len(forward)
            assert allowed_ids(matcher) == masks[place]


def test_matchers_of_one_grammar_do_not_disturb_each_other(tiny: GrammarCompiler) -> None:
    grammar = choose(tiny, "ab", "ca")
    one, other = grammar.matcher(), grammar.matcher()
    assert one.accept(A)
    assert allowed_ids(other) == [A, AB, C]
    assert other.accept(C)
    assert allowed_ids(one) == [B]


def test_a_lexer_full_of_what_others_did_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, demo: Tokenizer
) -> None:
    limits = grammar_source.library_limits()

    def few_states() -> object:
        return type(limits)(max_lexer_states=700, verbose_errors=False)

    monkeypatch.setattr(grammar_module, "library_limits", few_states)
    compiler = GrammarCompiler(demo, [END], demo.num_tokens)
    text = StructuredOutputs(json={"type": "string", "maxLength": 1000})
    grammar = compiler.compile(text)
    starts = {id(grammar._start)}
    for word in ("alpha ", "é", "日本", "😀", "\\n", "x y"):
        matcher = grammar.matcher()
        output = demo.encode('"' + word * 40 + '"')
        for token_id in output:
            assert token_id in allowed_ids(matcher)
            assert matcher.accept(token_id)
        assert matcher.is_complete
        matcher.rollback(len(output))
        assert matcher.accept(output[0])
        starts.add(id(grammar._start))
    assert len(starts) > 1
    compiler.close()


def test_a_mask_beyond_the_library_s_bounds_ends_the_request_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, demo: Tokenizer
) -> None:
    limits = grammar_source.library_limits()

    def few_items() -> object:
        return type(limits)(max_items_in_row=25, verbose_errors=False)

    monkeypatch.setattr(grammar_module, "library_limits", few_items)
    compiler = GrammarCompiler(demo, [END], demo.num_tokens)
    schema = {"properties": {f"p{number}": {} for number in range(30)}, "type": "object"}
    matcher = compiler.compile(StructuredOutputs(json=schema)).matcher()
    with pytest.raises(RequestError, match=r"structured_outputs: .* items; max is 25.*0 tokens"):
        matcher.accept(demo.encode("{")[0])
    other = choose(compiler, "still", "served").matcher()
    assert other.accept(demo.encode("still")[0])
    compiler.close()


def test_processor_time_is_bounded_by_the_number_of_tokens(
    monkeypatch: pytest.MonkeyPatch, tiny: GrammarCompiler
) -> None:
    grammar = tiny.compile(StructuredOutputs(regex="[abc]*"))
    matcher = grammar.matcher()
    for _ in range(20):
        assert matcher.accept(A)
    monkeypatch.setattr(grammar_module, "FREE_CPU_S", 0.0)
    monkeypatch.setattr(grammar_module, "CPU_S_PER_TOKEN", 1e-9)
    with pytest.raises(RequestError, match=r"ms of processor time a token: .* for 20 tokens"):
        matcher.accept(A)


def test_an_ambiguous_grammar_spends_its_processor_time(demo: Tokenizer) -> None:
    """It passes all checks, and each of its tokens takes longer than the one before."""
    compiler = GrammarCompiler(demo, [END], demo.num_tokens)
    matcher = compiler.compile(
        StructuredOutputs(grammar="root ::= s\ns ::= s s s | s s | [a-z] |")
    ).matcher()
    letter = demo.encode("a")[0]

    def go_on() -> None:
        while letter in allowed_ids(matcher):
            assert matcher.accept(letter)

    start = time.thread_time()
    with pytest.raises(RequestError, match="ms of processor time a token"):
        go_on()
    assert time.thread_time() - start < 10.0
    compiler.close()


def test_a_grammar_is_compiled_once_while_it_is_used_or_recent(tiny: GrammarCompiler) -> None:
    used = choose(tiny, "a")
    unused = id(choose(tiny, "b"))
    for number in range(MAX_CACHED_GRAMMARS):
        choose(tiny, f"a{'b' * number}c")
    assert tiny.find(StructuredOutputs(choice=["a"])) is used
    assert choose(tiny, "a") is used
    assert tiny.find(StructuredOutputs(choice=["b"])) is None
    assert id(tiny.find(StructuredOutputs(choice=["ac"]))) != unused


def test_without_the_library_the_request_is_refused_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    compiler = GrammarCompiler(make_tokenizer(["a"]), [], 4)
    with pytest.raises(RequestError, match="needs the package llguidance"):
        choose(compiler, "a")


@pytest.mark.parametrize(
    "module", ["qwen3_ray", "qwen3_ray.text.grammar", "qwen3_ray.engine.loop", "cluster.router"]
)
def test_the_library_is_not_loaded_before_it_is_used(module: str) -> None:
    code = f"import {module}, sys; sys.exit('llguidance' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
