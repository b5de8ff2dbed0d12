"""Requests whose output has a form, on their way into an engine: they wait, others do not."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from qwen3_ray.engine import loop as loop_module
from qwen3_ray.engine.compile_stage import CompileStage
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.loop import EngineLoop
from qwen3_ray.engine.stats import EngineStats
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs
from qwen3_ray.testing import FakeExecutor, make_fake_engine
from qwen3_ray.text.grammar import MAX_CACHED_GRAMMARS, Grammar, GrammarCompiler
from tests.qwen3_ray.text.grammar_rig import make_tokenizer

DEADLINE_S = 20.0
YES_OR_NO = StructuredOutputs(choice=["a", "b"])


class GatedCompiler(GrammarCompiler):
    """Compiles when the test lets it, and counts."""

    def __init__(self) -> None:
        super().__init__(make_tokenizer(["a", "b", "c"]), [3], 1000)
        self.gate = threading.Semaphore(0)
        self.has_begun = threading.Event()
        self.num_compiled = 0
        self.failure: Exception | None = None

    def compile(self, spec: StructuredOutputs) -> Grammar:
        self.has_begun.set()
        assert self.gate.acquire(timeout=DEADLINE_S)
        self.num_compiled += 1
        if self.failure is not None:
            raise self.failure
        return super().compile(spec)


class Rig:
    """A loop over a fake engine, and the deltas that it has given."""

    def __init__(self, compiler: GrammarCompiler | None) -> None:
        self.executor = FakeExecutor()
        self.deltas: list[TokenDelta] = []
        self.step_gate = threading.Event()
        """The step thread goes on past a step while this is set."""
        self.step_gate.set()
        self._changed = threading.Condition()
        self._compiler = compiler
        self.loop = EngineLoop(self._build, self._on_step)
        self.loop.start()
        self.loop.wait_ready(DEADLINE_S)

    def _build(self) -> Engine:
        engine = make_fake_engine(self.executor)
        engine.grammars = self._compiler
        return engine

    def _on_step(self, deltas: list[TokenDelta], _stats: EngineStats) -> None:
        with self._changed:
            self.deltas += deltas
            self._changed.notify_all()
        assert self.step_gate.wait(DEADLINE_S)

    def ends(self) -> dict[str, FinishReason]:
        return {d.request_id: d.finish_reason for d in self.deltas if d.finish_reason is not None}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S)

    def wait_for_ends(self, *request_ids: str) -> None:
        self.wait_for(lambda: set(request_ids) <= self.ends().keys())

    def error_of(self, request_id: str) -> tuple[str | None, str | None]:
        (delta,) = [d for d in self.deltas if d.request_id == request_id]
        return delta.error_param, delta.error


@contextmanager
def running(compiler: GrammarCompiler | None) -> Iterator[Rig]:
    rig = Rig(compiler)
    try:
        yield rig
    finally:
        rig.loop.stop(DEADLINE_S)
    assert rig.loop.error is None


@pytest.fixture
def compiler() -> Iterator[GatedCompiler]:
    compiler = GatedCompiler()
    yield compiler
    compiler.gate.release(100)
    compiler.close()


def plain(request_id: str, *, max_tokens: int = 3) -> GenerateRequest:
    return formed(request_id, None, max_tokens=max_tokens)


def formed(
    request_id: str, form: StructuredOutputs | None = YES_OR_NO, *, max_tokens: int = 3
) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=0, structured_outputs=form)
    return GenerateRequest(request_id=request_id, prompt_token_ids=(1, 2, 3), params=params)


def test_others_go_on_while_a_grammar_is_compiled(compiler: GatedCompiler) -> None:
    with running(compiler) as rig:
        rig.loop.submit([formed("f"), plain("p")])
        rig.wait_for_ends("p")
        rig.loop.submit([plain("q")])
        rig.wait_for_ends("q")
        assert "f" not in rig.ends()
        assert all("f" not in step for step in rig.executor.steps)
        compiler.gate.release()
        rig.wait_for_ends("f")
        assert rig.ends() == dict.fromkeys("fpq", FinishReason.LENGTH)


def test_requests_with_one_form_wait_for_one_compilation(compiler: GatedCompiler) -> None:
    with running(compiler) as rig:
        rig.loop.submit([formed(str(number)) for number in range(4)])
        assert compiler.has_begun.wait(DEADLINE_S)
        rig.loop.submit([formed("4")])
        compiler.gate.release(2)
        rig.wait_for_ends(*"01234")
        assert compiler.num_compiled == 1


def test_a_known_form_passes_in_its_place(compiler: GatedCompiler) -> None:
    compiler.gate.release()
    with running(compiler) as rig:
        rig.loop.submit([formed("first")])
        rig.wait_for_ends("first")
        rig.executor.steps.clear()
        rig.loop.submit([plain("p"), formed("f"), plain("q")])
        rig.wait_for_ends("p", "f", "q")
        assert list(rig.executor.steps[0]) == ["p", "f", "q"]
        assert compiler.num_compiled == 1


def test_a_form_that_cannot_be_compiled_ends_its_requests_and_no_others(
    compiler: GatedCompiler,
) -> None:
    compiler.gate.release()
    with running(compiler) as rig:
        rig.loop.submit([formed("f", StructuredOutputs(regex="(")), plain("p")])
        rig.wait_for_ends("f", "p")
        assert rig.ends() == {"f": FinishReason.ERROR, "p": FinishReason.LENGTH}
        assert rig.error_of("f") == ("structured_outputs", "regex: unclosed group")
        rig.loop.submit([plain("f")])  # its id is free again


def test_an_unforeseen_failure_is_no_fault_of_the_request(compiler: GatedCompiler) -> None:
    compiler.failure = OSError("too many open files")
    compiler.gate.release()
    with running(compiler) as rig:
        rig.loop.submit([formed("f"), plain("p")])
        rig.wait_for_ends("f", "p")
        param, error = rig.error_of("f")
        assert param is None
        assert "too many open files" in (error or "")


def test_a_request_is_aborted_while_its_grammar_is_compiled(compiler: GatedCompiler) -> None:
    with running(compiler) as rig:
        rig.loop.submit([formed("f"), formed("g")])
        assert compiler.has_begun.wait(DEADLINE_S)
        rig.loop.submit(aborts=["f"])
        rig.wait_for_ends("f")
        assert rig.ends() == {"f": FinishReason.ABORT}
        rig.loop.submit([formed("f", max_tokens=2)])  # again, for the compilation under way
        compiler.gate.release(2)
        rig.wait_for(lambda: rig.ends() == dict.fromkeys("fg", FinishReason.LENGTH))
        assert [d.request_id for d in rig.deltas if d.finish_reason].count("f") == 2


def test_a_form_that_nobody_waits_for_any_more_does_no_harm(compiler: GatedCompiler) -> None:
    with running(compiler) as rig:
        rig.loop.submit([formed("f")], ["f"])
        rig.wait_for_ends("f")
        compiler.gate.release()
        rig.loop.submit([formed("g")])
        rig.wait_for_ends("g")
        assert rig.ends() == {"f": FinishReason.ABORT, "g": FinishReason.LENGTH}


def test_a_stop_does_not_wait_for_a_compilation_and_begins_no_other(
    compiler: GatedCompiler,
) -> None:
    with running(compiler) as rig:
        forms = [StructuredOutputs(choice=[text]) for text in "abc"]
        rig.loop.submit([formed(text, form) for text, form in zip("abc", forms, strict=True)])
        assert compiler.has_begun.wait(DEADLINE_S)
        start = time.monotonic()
        rig.loop.stop(DEADLINE_S)
        assert time.monotonic() - start < DEADLINE_S / 2
        assert rig.ends() == dict.fromkeys("abc", FinishReason.ABORT)
        compiler.gate.release(3)
        for thread in threading.enumerate():
            if thread.name.startswith("grammar"):
                thread.join(DEADLINE_S)
        assert compiler.num_compiled <= 2  # as many threads there are


def test_a_grammar_compiled_while_the_step_thread_was_busy_is_not_left_lying(
    monkeypatch: pytest.MonkeyPatch, compiler: GatedCompiler
) -> None:
    monkeypatch.setattr(loop_module, "IDLE_INTERVAL_S", 2 * DEADLINE_S)
    with running(compiler) as rig:
        rig.step_gate.clear()
        rig.loop.submit([formed("f")])
        assert compiler.has_begun.wait(DEADLINE_S)
        compiler.gate.release()
        deadline = time.monotonic() + DEADLINE_S
        while not rig.loop._inbox.has_compiled:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        rig.step_gate.set()
        rig.wait_for_ends("f")


def test_without_a_tokenizer_a_form_is_refused() -> None:
    with running(None) as rig:
        rig.loop.submit([formed("f"), plain("p")])
        rig.wait_for_ends("f", "p")
        assert rig.ends()["p"] is FinishReason.LENGTH
        assert rig.error_of("f") == (
            "structured_outputs",
            "needs a tokenizer, and this checkpoint has none",
        )


def test_a_grammar_is_there_until_its_request_has_ended(compiler: GatedCompiler) -> None:
    compiler.gate.release(100)
    is_compiled = threading.Event()
    stage = CompileStage(compiler, is_compiled.set)
    request = formed("f")
    assert stage.add([request]) == ([], [])
    assert stage.num_waiting == 1
    assert is_compiled.wait(DEADLINE_S)
    assert stage.take() == ([request], [])
    assert stage.num_waiting == 0
    for number in range(MAX_CACHED_GRAMMARS):
        compiler.compile(StructuredOutputs(choice=["c" * (number + 1)]))
    assert compiler.find(YES_OR_NO) is not None
    for number in range(MAX_CACHED_GRAMMARS):
        compiler.compile(StructuredOutputs(choice=["c" * (number + 1)]))
    stage.release([TokenDelta(request_id="f", token_ids=(1,))])
    assert YES_OR_NO in compiler._in_use
    stage.release([TokenDelta(request_id="f", finish_reason=FinishReason.STOP)])
    assert YES_OR_NO not in compiler._in_use
    stage.close()


def test_an_engine_ends_its_compiler(compiler: GatedCompiler) -> None:
    compiler.gate.release(2)
    with running(compiler) as rig:
        rig.loop.submit([formed("f", StructuredOutputs(regex="a+"))])
        rig.wait_for_ends("f")
        (worker,) = compiler._checker._workers
        assert worker._process.poll() is None
    assert worker._process.poll() is not None
