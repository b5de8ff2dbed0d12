"""Grammars that an output's tokens must follow, over llguidance (docs/adr/0002)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NoReturn
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from qwen3_ray.errors import RequestError
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text.grammar_checker import GrammarChecker
from qwen3_ray.text.grammar_source import explain, is_simple, lark_of, library_limits
from qwen3_ray.text.grammar_vocabulary import GrammarVocabulary
from qwen3_ray.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_CACHED_GRAMMARS = 32
"""Kept although no request uses them."""
FREE_CPU_S = 0.5
CPU_S_PER_TOKEN = 0.01
"""Processor time that a request may spend on masks: `FREE_CPU_S` and this for each token."""


class GrammarCompiler:
    """Compiles forms for one model's tokens. Any thread may use it.

    Args:
        tokenizer: the model's.
        eos_token_ids: ids that end an output; within a grammar they mean nothing else.
        vocab_size: logits that the model has, so ids that a mask has bits for.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos_token_ids: Collection[int], vocab_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._vocabulary: GrammarVocabulary | None = None
        self._checker = GrammarChecker()
        self._lock = threading.Lock()
        self._recent: OrderedDict[StructuredOutputs, Grammar] = OrderedDict()
        self._in_use: WeakValueDictionary[StructuredOutputs, Grammar] = WeakValueDictionary()

    def load(self) -> GrammarVocabulary:
        """Hand the library the tokens, or give what it made of them before.

        The first time takes 0.5 s for 151,669 tokens, and no other thread runs Python meanwhile.

        Raises:
            RequestError: the library is not installed.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(
                    self._tokenizer, self._eos_token_ids, self._vocab_size
                )
            return self._vocabulary

    def find(self, spec: StructuredOutputs) -> Grammar | None:
        """A form's grammar if it is compiled already: it is in use, or was not long ago."""
        with self._lock:
            grammar = self._in_use.get(spec)
            if grammar is not None:
                self._keep(spec, grammar)
            return grammar

    def compile(self, spec: StructuredOutputs) -> Grammar:
        """A form's grammar. One that is not known yet is tried out in another process first.

        Takes milliseconds, and at most `grammar_checker.CHECK_LIMIT_S` to refuse.

        Raises:
            RequestError: it is no grammar, allows no text, or is too much for the library.
        """
        grammar = self.find(spec)
        if grammar is not None:
            return grammar
        vocabulary = self.load()
        lark = lark_of(spec) if is_simple(spec) else self._checker.lark_of(spec)
        grammar = Grammar(lark, vocabulary)
        with self._lock:
            self._keep(spec, grammar)
        return grammar

    def close(self) -> None:
        """End the processes that try out grammars."""
        self._checker.close()

    def _keep(self, spec: StructuredOutputs, grammar: Grammar) -> None:
        self._in_use[spec] = grammar
        self._recent[spec] = grammar
        self._recent.move_to_end(spec)
        if len(self._recent) > MAX_CACHED_GRAMMARS:
            self._recent.popitem(last=False)


class Grammar:
    """A compiled form. Matchers share what the library finds out about it while they run."""

    def __init__(self, lark: str, vocabulary: GrammarVocabulary) -> None:
        """Compile a grammar that was tried out.

        Raises:
            RequestError: the library refuses it, or it allows no text.
        """
        self.vocabulary = vocabulary
        self._lark = lark
        self.renew()
        self.matcher().fill_mask(np.empty(vocabulary.num_mask_words, np.int32))

    def matcher(self) -> Matcher:
        """A matcher at the beginning of the grammar."""
        return Matcher(self)

    def renew(self) -> None:
        """Compile anew: matchers from here on share nothing with those before."""
        import llguidance  # noqa: PLC0415

        self._start: LLMatcher = llguidance.LLMatcher(
            self.vocabulary.tokenizer, self._lark, log_level=0, limits=library_limits()
        )
        if self._start.is_error():
            raise RequestError("structured_outputs", explain(self._start.get_error()))

    def start(self) -> LLMatcher:
        """The library's matcher at the beginning."""
        return self._start.deep_copy()


class Matcher:
    """Where one output is in its grammar. For one thread.

    It is a function of the tokens accepted and not taken back, whatever happened in between. The
    methods raise RequestError when the grammar has become too much for the library's bounds or the
    request's processor time, or allows neither a token nor the end; the matcher is of no more use
    then.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._vocabulary = grammar.vocabulary
        self._state = grammar.start()
        self._words = np.empty(self._vocabulary.num_words, np.int32)
        self._has_words = False
        """Whether `_words` are those of the present state."""
        self._token_ids: list[int] = []
        self._has_ended = False
        self._num_renewed = 0
        """Tokens there were when the state was last made anew."""
        self._cpu_s = 0.0

    @property
    def num_mask_words(self) -> int:
        """Words of a mask."""
        return self._vocabulary.num_mask_words

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end is possible."""
        return self._has_ended or self._vocabulary.is_end_only(self._allowed_words())

    def fill_mask(self, mask: NDArray[np.int32]) -> None:
        """Set the bits of the ids that may come next: bit `i % 32` of word `i // 32` for id `i`.

        End-of-text ids are among them exactly when the output may end here.

        Args:
            mask: [(vocab_size + 31) // 32]; overwritten.
        """
        if self._has_ended:
            mask[:] = 0
        else:
            self._vocabulary.write_mask(self._allowed_words(), mask)

    def accept(self, token_id: int) -> bool:
        """Go on by a token; False, and nothing has happened, if it may not come here."""
        if self._has_ended:
            return False
        if token_id in self._vocabulary.eos_token_ids:
            self._has_ended = is_accepted = self._state.is_accepting()
        else:
            is_accepted = self._vocabulary.has_text(token_id) and self._consume(token_id)
        if is_accepted:
            self._token_ids.append(token_id)
        return is_accepted

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens that were accepted."""
        if num_tokens == 0:
            return
        num_texts = num_tokens - self._has_ended
        if num_texts > 0:
            if not self._state.rollback(num_texts):
                self._fail()
            self._has_words = False
        self._has_ended = False
        del self._token_ids[-num_tokens:]
        self._num_renewed = min(self._num_renewed, len(self._token_ids))

    def _allowed_words(self) -> NDArray[np.int32]:
        if not self._has_words:
            self._run(lambda: self._vocabulary.compute(self._state, self._words))
            self._has_words = True
        return self._words

    def _consume(self, token_id: int) -> bool:
        is_accepted = self._run(lambda: self._state.try_consume_tokens([token_id])) == 1
        self._has_words = self._has_words and not is_accepted
        return is_accepted

    def _run(self, work: Callable[[], int]) -> int:
        """Let the library do something with the state, within the request's bounds."""
        start_s = time.thread_time()
        result = work()
        if self._state.is_error():
            self._renew()
            result = work()
            if self._state.is_error():
                self._fail()
        self._cpu_s += time.thread_time() - start_s
        if self._cpu_s > FREE_CPU_S + CPU_S_PER_TOKEN * len(self._token_ids):
            raise RequestError(
                "structured_outputs",
                f"following it takes more than {CPU_S_PER_TOKEN * 1000:g} ms of processor time a "
                f"token: {self._cpu_s:.1f} s for {len(self._token_ids)} tokens",
            )
        return result

    def _renew(self) -> None:
        """Make the state anew: its lexer may be full of what other requests went through."""
        if self._num_renewed == len(self._token_ids):
            self._fail()
        self._num_renewed = len(self._token_ids)
        self._grammar.renew()
        self._state = self._grammar.start()
        self._state.try_consume_tokens(self._token_ids)

    def _fail(self) -> NoReturn:
        problem = explain(self._state.get_error())
        raise RequestError("structured_outputs", f"{problem} (after {len(self._token_ids)} tokens)")
