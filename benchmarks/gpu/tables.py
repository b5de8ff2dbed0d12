"""Times of decode and prefill steps, beside the least that they can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.gpu import floors
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import free_bytes, release, seconds_per_call
from benchmarks.gpu.graphs import DecodeStep, PrefillStep
from benchmarks.gpu.record import Record
from benchmarks.gpu.setup import Setup
from benchmarks.limits import KV_BYTES, WEIGHT_BYTES
from qwen3_ray.config import Numerics
from qwen3_ray.errors import ConfigError
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.testing_ranks import LoneRank

_SECONDS_A_CASE = 2.0
_SPARE_BYTES = 4 << 30
"""For activations and logits."""
_GRAPH_TOKENS = 2_048
"""The largest prompts that the engine has graphs for."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What a model computes with."""

    name: str
    numerics: Numerics
    linear_bytes: int = WEIGHT_BYTES
    """Of a weight: one is fp8."""

    def load(self, setup: Setup, shape: str) -> Qwen3ForCausalLM:
        """A model of this mode.

        Raises:
            ConfigError: this device or this engine cannot.
        """
        quantization = "fp8" if self.linear_bytes == 1 else "none"
        return setup.load(shape, numerics=self.numerics, quantization=quantization)


MODES = (Mode("fast", "fast"), Mode("exact", "exact"), Mode("fp8", "fast", linear_bytes=1))


@dataclass(frozen=True, slots=True)
class StepTables:
    """The stage: what matters most comes first."""

    setup: Setup
    record: Record
    deadline: Deadline

    def measure(self) -> None:
        """All tables, as far as time goes."""
        sizes, ceilings = self.setup.sizes, self.setup.ceilings
        self.record.row(
            "Ceilings", read_and_write_gb_s=ceilings.read_bytes_per_s / 1e9,
            bf16_tflops=ceilings.flops / 1e12,
        )  # fmt: skip
        large = [(count, length) for length in sizes.contexts for count in sizes.decode_batches]
        small = [(count, sizes.small_context) for count in sizes.small_batches]
        for mode in MODES:
            self._model(sizes.large, mode, large, sizes.prefill_lens)
        for num_ranks in sizes.num_ranks:
            with self.record.part(f"a rank of {num_ranks}"):
                self._shard(num_ranks)
            release()
        for mode in MODES:
            self._model(sizes.small, mode, small, ())

    def _model(
        self, shape: str, mode: Mode, cases: Sequence[tuple[int, int]], prompts: Sequence[int]
    ) -> None:
        release()
        name = f"{shape}, {mode.name}"
        if not self._has_time(name):
            return
        with self.record.part(name):
            try:
                model = mode.load(self.setup, shape)
            except ConfigError as error:
                self.record.skip(name, str(error))
                return
            for num_seqs, context_len in cases:
                with self.record.part(f"decode of {name}, {num_seqs} x {context_len}"):
                    self._decode(model, shape, mode, num_seqs=num_seqs, context_len=context_len)
                release()
            for num_tokens in prompts:
                with self.record.part(f"prefill of {name}, {num_tokens}"):
                    self._prefill(model, shape, mode, num_tokens)
                release()

    def _decode(
        self,
        model: Qwen3ForCausalLM,
        shape: str,
        mode: Mode,
        *,
        num_seqs: int,
        context_len: int,
    ) -> None:
        name = f"decode of {shape}, {mode.name}, {num_seqs} x {context_len}"
        cost = self.setup.cost(shape)
        kv_bytes = num_seqs * context_len * cost.kv_values_per_token * KV_BYTES
        if kv_bytes + _SPARE_BYTES > free_bytes(self.setup.device):
            self.record.skip(name, "no room")
        elif self._has_time(name):
            step = DecodeStep(self.setup, model, num_seqs, context_len)
            seconds = self._seconds(step.captured(keep_logits=False))
            floor = floors.decode_s(
                cost,
                self.setup.ceilings,
                num_seqs=num_seqs,
                context_len=context_len,
                linear_bytes=mode.linear_bytes,
            )
            self.record.row(
                f"Decode, {shape}",
                mode=mode.name, sequences=num_seqs, context=context_len, ms=1e3 * seconds,
                tokens_per_s=num_seqs / seconds, floor_ms=1e3 * floor,
                percent_of_floor=100 * floor / seconds,
            )  # fmt: skip

    def _prefill(self, model: Qwen3ForCausalLM, shape: str, mode: Mode, num_tokens: int) -> None:
        if not self._has_time(f"prefill of {shape}, {mode.name}, {num_tokens}"):
            return
        step = PrefillStep(self.setup, model, num_tokens)
        eager_s = best_s = self._seconds(step.run)
        graph_ms = None
        if self.setup.is_gpu and num_tokens <= _GRAPH_TOKENS:
            graph_s = self._seconds(step.captured())
            graph_ms, best_s = 1e3 * graph_s, min(eager_s, graph_s)
        floor = self.setup.cost(shape).prefill_s(num_tokens, self.setup.ceilings)
        self.record.row(
            f"Prefill, {shape}",
            mode=mode.name, tokens=num_tokens, eager_ms=1e3 * eager_s, graph_ms=graph_ms,
            tokens_per_s=num_tokens / best_s, floor_ms=1e3 * floor,
            percent_of_floor=100 * floor / best_s,
        )  # fmt: skip

    def _shard(self, num_ranks: int) -> None:
        """One rank's share of a group, without what the ranks say to each other."""
        shape, context_len = self.setup.sizes.large, self.setup.sizes.contexts[0]
        if not self._has_time(f"a rank of {num_ranks}"):
            return
        rank = LoneRank(0, num_ranks)
        model = self.setup.load(shape, numerics="fast", tp=rank.group())
        for num_seqs in self.setup.sizes.small_batches:
            step = DecodeStep(self.setup, model, num_seqs, context_len)
            rank.calls.clear()
            step.run()
            num_bytes, num_calls = sum(call.num_bytes for call in rank.calls), len(rank.calls)
            seconds = self._seconds(step.captured(keep_logits=False))
            floor = floors.decode_s(
                self.setup.cost(shape),
                self.setup.ceilings,
                num_seqs=num_seqs,
                context_len=context_len,
                num_ranks=num_ranks,
            )
            self.record.row(
                f"One rank's share of a decode step, {shape}, fast; collectives cost nothing here",
                ranks=num_ranks, sequences=num_seqs, context=context_len, ms=1e3 * seconds,
                floor_ms=1e3 * floor, percent_of_floor=100 * floor / seconds,
                collectives=num_calls, collective_bytes=num_bytes,
            )  # fmt: skip
            del step
            release()

    def _seconds(self, work: Callable[[], object]) -> float:
        setup = self.setup
        return seconds_per_call(work, setup.device, budget_s=setup.sizes.seconds_a_case)

    def _has_time(self, name: str) -> bool:
        if self.deadline.has(_SECONDS_A_CASE):
            return True
        self.record.skip(name, "no time left")
        return False
