"""The process in which grammars are tried out before the engine compiles them.

`python -m qwen3_ray.text.grammar_worker` reads one form a line from stdin, as JSON, and answers
each with a line of JSON: `{"lark": ...}` or `{"error": ...}`. A form that takes it too much
processor time or memory, or crashes the library, costs this process its life and nothing else.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys

import llguidance

from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text.grammar_ebnf import EbnfError
from qwen3_ray.text.grammar_source import explain, lark_of, library_limits

CPU_LIMIT_S = 0.5
"""Processor time for one form."""
MEMORY_LIMIT_BYTES = 1 << 30
_NICENESS = 10
"""A waiting model step comes first where processors are scarce."""
_NUM_WALK_BYTES = 32


def main() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizer = llguidance.LLTokenizer("byte")
    os.nice(_NICENESS)
    sys.stdout.write("{}\n")  # ready
    sys.stdout.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)  # its signal ends the process
        answer = _answer(line, tokenizer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _answer(line: str, tokenizer: llguidance.LLTokenizer) -> dict[str, str]:
    form = StructuredOutputs(**json.loads(line))
    try:
        lark = lark_of(form)
        problem = _try_out(lark, tokenizer)
    except EbnfError as error:
        problem = str(error)
    except RecursionError:
        problem = "rules and groups are nested too deep"
    return {"error": f"{form.kind}: {problem}"} if problem else {"lark": lark}


def _try_out(lark: str, tokenizer: llguidance.LLTokenizer) -> str:
    """What the library says to a grammar, and to the beginning of some text of it."""
    matcher = llguidance.LLMatcher(tokenizer, lark, log_level=0, limits=library_limits())
    pick = random.Random(0)
    for _ in range(_NUM_WALK_BYTES):
        mask = int.from_bytes(matcher.compute_bitmask(), "little") if _is_fine(matcher) else 0
        allowed = [byte for byte in range(256) if mask >> byte & 1]
        if not allowed:
            break
        matcher.consume_token(pick.choice(allowed))
    return "" if _is_fine(matcher) else explain(matcher.get_error())


def _is_fine(matcher: llguidance.LLMatcher) -> bool:
    return not matcher.is_error()


if __name__ == "__main__":
    main()
