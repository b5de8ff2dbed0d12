"""What structured outputs cost: compiling a form, and a mask for each of its output's tokens.

    python -m benchmarks.grammar_cost [--tokenizer DIRECTORY] [--vocab-size N]

The directory holds a `tokenizer.json`; without one it is the bundled demo model's. Each form is
compiled once (and tried out in the checker's process before, as an engine does); then outputs are
drawn under its masks at random, `--tokens` in all. A token is one mask and one `accept`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text.grammar import Grammar, GrammarCompiler
from qwen3_ray.text.tokenizer import Tokenizer

_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
_LARGE = {
    "type": "object",
    "properties": {f"field_{i}": _RECORD if i % 2 else {"type": "string"} for i in range(60)},
    "required": [f"field_{i}" for i in range(0, 60, 2)],
}
_ARITHMETIC = r"""root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= [a-z] [a-z0-9_]* ws | [0-9]+ ws | "(" ws expr ")" ws
ws    ::= [ \t\n]*"""
FORMS = {
    "json: 3 properties": StructuredOutputs(json=_RECORD),
    "json: 60 properties": StructuredOutputs(json=_LARGE),
    "json_object": StructuredOutputs(json_object=True),
    "regex: date": StructuredOutputs(regex=r"\d{4}-\d\d-\d\d"),
    "regex: sentence": StructuredOutputs(regex=r"(\w+ ){1,100}\w+\."),
    "choice: 1,000 texts": StructuredOutputs(choice=[f"choice {i}" for i in range(1000)]),
    "grammar: arithmetic": StructuredOutputs(grammar=_ARITHMETIC),
}


def compile_ms(compiler: GrammarCompiler, form: StructuredOutputs) -> tuple[Grammar, float]:
    """A form's grammar, and how long it took."""
    start = time.perf_counter()
    grammar = compiler.compile(form)
    return grammar, (time.perf_counter() - start) * 1e3


def token_us(grammar: Grammar, tokenizer: Tokenizer, num_mask_words: int) -> Iterator[float]:
    """What each token of random outputs takes, without end."""
    pick = random.Random(0)
    mask = np.empty(num_mask_words, np.int32)
    while True:
        matcher, is_open, num_tokens = grammar.matcher(), True, 0
        while is_open and num_tokens < 100:
            start = time.perf_counter()
            matcher.fill_mask(mask)
            filled = time.perf_counter()
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            texts = [int(id_) for id_ in allowed if tokenizer.output_bytes(int(id_))]
            is_open = bool(texts)
            if is_open:
                accepted = time.perf_counter()
                matcher.accept(pick.choice(texts))
                yield (time.perf_counter() - accepted + filled - start) * 1e6
            num_tokens += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, default=DEMO_MODEL_DIR)
    parser.add_argument("--vocab-size", type=int, help="logits; default: the tokenizer's tokens")
    parser.add_argument("--tokens", type=int, default=1000, help="for each form")
    args = parser.parse_args()
    tokenizer = Tokenizer.load(args.tokenizer)
    vocab_size = args.vocab_size or tokenizer.num_tokens
    compiler = GrammarCompiler(tokenizer, [], vocab_size)
    start = time.perf_counter()
    compiler.load()
    print(f"{tokenizer.num_tokens} tokens, loaded in {(time.perf_counter() - start) * 1e3:.0f} ms")
    compiler.compile(StructuredOutputs(regex="a"))  # starts the checker's process
    print(f"{'form':24} {'compile':>10} {'token p50':>10} {'p99':>9} {'max':>9}")
    for name, form in FORMS.items():
        grammar, compile_time = compile_ms(compiler, form)
        costs = token_us(grammar, tokenizer, (vocab_size + 31) // 32)
        times = [next(costs) for _ in range(args.tokens)]
        middle, high = statistics.median(times), statistics.quantiles(times, n=100)[-1]
        print(
            f"{name:24} {compile_time:7.1f} ms {middle:7.0f} us {high:6.0f} us {max(times):6.0f} us"
        )
    compiler.close()


if __name__ == "__main__":
    main()
