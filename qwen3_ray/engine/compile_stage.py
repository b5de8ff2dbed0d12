"""Where requests wait for the grammar that their output must follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NamedTuple

from qwen3_ray.errors import RequestError
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.text.grammar import Grammar, GrammarCompiler

_NUM_THREADS = 2
"""They mostly wait for another process; see `GrammarCompiler`."""
_NO_TOKENIZER = RequestError(
    "structured_outputs", "needs a tokenizer, and this checkpoint has none"
)


class _Compiled(NamedTuple):
    """What came of a form: its grammar, or what is wrong with it."""

    form: StructuredOutputs
    outcome: Grammar | RequestError


class CompileStage:
    """Compiles grammars beside the step thread, which calls all methods.

    Requests without a form never wait here, and those with a form that is known pass at once.
    Holds the grammars of the requests that passed, so that the compiler has them when their
    outputs are sampled, until it is told that they have ended.

    Args:
        compiler: None if the model has no tokenizer: then requests with a form are refused.
        on_compiled: called in another thread when `take` has something to give.
    """

    def __init__(self, compiler: GrammarCompiler | None, on_compiled: Callable[[], None]) -> None:
        self._compiler = compiler
        self._on_compiled = on_compiled
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
        self._compiled: SimpleQueue[_Compiled] = SimpleQueue()
        self._waiting: dict[StructuredOutputs, dict[str, GenerateRequest]] = {}
        self._held: dict[str, Grammar] = {}

    @property
    def num_waiting(self) -> int:
        """Requests whose grammar is being compiled."""
        return sum(map(len, self._waiting.values()))

    def add(
        self, requests: Iterable[GenerateRequest]
    ) -> tuple[list[GenerateRequest], list[TokenDelta]]:
        """Take new requests.

        Returns:
            Those that need not wait, in their order, and a delta for each that is refused.
        """
        passed, refused = [], []
        for request in requests:
            form = request.params.structured_outputs
            if form is None or self._hold(request.request_id, form):
                passed.append(request)
            elif self._compiler is None:
                refused.append(refusal(request.request_id, _NO_TOKENIZER))
            else:
                self._wait(request, form)
        return passed, refused

    def take(self) -> tuple[list[GenerateRequest], list[TokenDelta]]:
        """Requests whose grammars have been compiled, and a delta for each where that failed."""
        passed: list[GenerateRequest] = []
        refused: list[TokenDelta] = []
        while (compiled := self._next()) is not None:
            requests = self._waiting.pop(compiled.form, {})
            if isinstance(compiled.outcome, RequestError):
                refused += [refusal(request_id, compiled.outcome) for request_id in requests]
            else:
                self._held.update(dict.fromkeys(requests, compiled.outcome))
                passed += requests.values()
        return passed, refused

    def abort(self, request_id: str) -> bool:
        """Forget a request that waits; False if none of this id does."""
        # A form that nobody waits for any more stays: its compilation cannot be stopped.
        return any(
            requests.pop(request_id, None) is not None for requests in self._waiting.values()
        )

    def release(self, deltas: Sequence[TokenDelta]) -> None:
        """Let go of the grammars of requests that have ended."""
        for delta in deltas:
            if delta.finish_reason is not None:
                self._held.pop(delta.request_id, None)

    def close(self) -> None:
        """Begin no further compilation."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _hold(self, request_id: str, form: StructuredOutputs) -> bool:
        grammar = None if self._compiler is None else self._compiler.find(form)
        if grammar is not None:
            self._held[request_id] = grammar
        return grammar is not None

    def _wait(self, request: GenerateRequest, form: StructuredOutputs) -> None:
        if form not in self._waiting:
            self._waiting[form] = {}
            self._pool.submit(self._compile, form)
        self._waiting[form][request.request_id] = request

    def _compile(self, form: StructuredOutputs) -> None:
        """In a thread of the pool."""
        outcome: Grammar | RequestError
        try:
            assert self._compiler is not None  # noqa: S101  (`add` has seen to it)
            outcome = self._compiler.compile(form)
        except RequestError as error:
            outcome = error
        except Exception as error:  # not the request's fault, and no reason to end the engine
            outcome = RequestError(None, f"no grammar could be compiled: {error!r}")
        self._compiled.put(_Compiled(form, outcome))
        self._on_compiled()

    def _next(self) -> _Compiled | None:
        try:
            return self._compiled.get_nowait()
        except Empty:
            return None


def refusal(request_id: str, error: RequestError) -> TokenDelta:
    """How a request ends that cannot be served."""
    return TokenDelta(
        request_id=request_id,
        finish_reason=FinishReason.ERROR,
        error=error.message,
        error_param=error.param,
    )
