"""Our model against transformers, and against itself in other batches, chunks and graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu import reference
from benchmarks.gpu.deadline import Deadline
from benchmarks.gpu.device import release
from benchmarks.gpu.engine_check import check_engine
from benchmarks.gpu.graphs import DecodeStep
from benchmarks.gpu.ours import Steps, random_sequences
from benchmarks.gpu.record import Record
from benchmarks.gpu.setup import Setup
from qwen3_ray.config import DType, Numerics, Quantization
from qwen3_ray.errors import ConfigError
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM

MAX_FP32_ERROR = 1e-4
"""Of logits: norm of the difference over norm. Products that round to TF32 give 1e-3."""
MAX_BF16_RATIO = 1.2
"""Of our error in bf16 to that of transformers."""
MAX_FP8_ERROR = 0.25
"""Three bits of a mantissa are off by up to 6 %, and layers add up; wrong scales cost far more."""
NOISE_FACTOR = 4.0
"""A margin of so many of transformers' own largest errors in a row is beyond doubt."""
NUMERICS: tuple[Numerics, ...] = ("exact", "fast")
_TABLE = "Error of logits against transformers in float32"


def check_correctness(setup: Setup, record: Record, deadline: Deadline) -> None:
    """The stage."""
    sizes = setup.sizes
    sequences = random_sequences(
        sizes.prompt_lens, setup.config(sizes.small).vocab_size, num_given=sizes.num_decodes
    )
    with record.part("against transformers"):
        _against_transformers(setup, record, sequences)
    for numerics in NUMERICS:
        release()
        if not deadline.has(0):
            record.skip(f"{numerics} mode against itself", "no time left")
            continue
        with record.part(f"{numerics} mode against itself"):
            _check_itself(setup, record, numerics, sequences)
        release()
        with record.part(f"engine, {numerics}"):
            check_engine(setup, record, numerics)


def _check_itself(
    setup: Setup, record: Record, numerics: Numerics, sequences: Sequence[Sequence[int]]
) -> None:
    model = setup.load(setup.sizes.small, numerics=numerics)
    if setup.kernels == "triton" and numerics == "exact":
        record.check("exact mode is exact", model.exact, model.kernel_names)
    if model.exact:
        with record.part("chunks"):
            _check_chunks(setup, model, record, sequences)
        with record.part("companions"):
            _check_companions(setup, model, record, sequences)
    else:
        record.skip(f"bits in {numerics} mode", f"{model.kernel_names} are not exact")
    _check_graphs(setup, model, record, numerics)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Truth:
    """What transformers says, at every position of each sequence."""

    logits: list[torch.Tensor]
    """[num_tokens, vocab_size], in float32."""
    bf16_error: float
    """Of transformers in bfloat16."""
    bf16_decode_error: float
    """The same, of the last tokens alone."""
    sure: list[torch.Tensor]
    """[num_tokens], rows whose likeliest token is beyond doubt."""


def _ask_transformers(setup: Setup, sequences: Sequence[Sequence[int]]) -> _Truth:
    path, num_decodes = setup.checkpoints.of(setup.sizes.small), setup.sizes.num_decodes
    truth, theirs = (
        reference.logits(reference.from_files(path, dtype, setup.device), sequences)
        for dtype in (torch.float32, torch.bfloat16)
    )
    return _Truth(
        logits=truth,
        bf16_error=_error(theirs, truth),
        bf16_decode_error=_error(_last(theirs, num_decodes), _last(truth, num_decodes)),
        sure=[_sure_rows(t, b) for t, b in zip(truth, theirs, strict=True)],
    )


def _against_transformers(setup: Setup, record: Record, sequences: Sequence[Sequence[int]]) -> None:
    truth = _ask_transformers(setup, sequences)
    record.row(
        _TABLE,
        engine="transformers", dtype="bfloat16", error=truth.bf16_error,
        decodes=truth.bf16_decode_error,
    )  # fmt: skip
    with record.part("float32 logits"):
        ours = _logits(setup, sequences, "exact", "float32")
        error = _error(ours, truth.logits)
        record.row(_TABLE, engine="ours, exact", dtype="float32", error=error)
        record.check("float32 logits", error <= MAX_FP32_ERROR, f"error {error:.1e}")
    for numerics in NUMERICS:
        release()
        with record.part(f"{setup.dtype} logits, {numerics}"):
            ours = _logits(setup, sequences, numerics, setup.dtype)
            _check_bf16(setup, record, numerics, ours, truth)
    with record.part("fp8 weights"):
        try:
            ours = _logits(setup, sequences, "fast", setup.dtype, "fp8")
        except ConfigError as refusal:
            record.skip("error of fp8 weights", str(refusal))
            return
        error = _error(ours, truth.logits)
        record.row(_TABLE, engine="ours, fast, fp8 weights", dtype=setup.dtype, error=error)
        record.check("fp8 weights", error <= MAX_FP8_ERROR, f"error {error:.1e}")


def _logits(
    setup: Setup,
    sequences: Sequence[Sequence[int]],
    numerics: Numerics,
    dtype: DType,
    quantization: Quantization = "none",
) -> list[torch.Tensor]:
    model = setup.load(setup.sizes.small, numerics=numerics, dtype=dtype, quantization=quantization)
    steps = Steps(setup, model, sequences, getattr(torch, dtype))
    return steps.prompts_then_decodes(setup.sizes.num_decodes)


def _check_bf16(
    setup: Setup, record: Record, name: str, ours: Sequence[torch.Tensor], truth: _Truth
) -> None:
    num_decodes = setup.sizes.num_decodes
    error = _error(ours, truth.logits)
    decode_error = _error(_last(ours, num_decodes), _last(truth.logits, num_decodes))
    worst = max(_error([one], [true]) for one, true in zip(ours, truth.logits, strict=True))
    ratio = max(error / truth.bf16_error, decode_error / truth.bf16_decode_error)
    record.row(
        _TABLE,
        engine=f"ours, {name}", dtype=setup.dtype, error=error, decodes=decode_error,
        worst_prompt=worst, ratio=ratio,
    )  # fmt: skip
    detail = f"{ratio:.2f} times the error of transformers"
    record.check(f"{setup.dtype} logits, {name}", ratio <= MAX_BF16_RATIO, detail)
    agree = torch.cat(
        [
            (one.argmax(-1) == true.argmax(-1))[rows]
            for one, true, rows in zip(ours, truth.logits, truth.sure, strict=True)
        ]
    )
    num_rows = sum(map(len, truth.logits))
    record.check(
        f"likeliest tokens, {name}",
        bool(agree.all()),
        f"{int(agree.sum())} of {len(agree)} rows with a clear winner, of {num_rows}",
    )


def _last(sequences: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    return [logits[-count:] for logits in sequences]


def _error(found: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> float:
    """Norm of all differences over the norm of the truth; NaN stays NaN."""
    difference = sum((a - b).double().square().sum() for a, b in zip(found, truth, strict=True))
    size = sum(b.double().square().sum() for b in truth)
    return float((difference / size) ** 0.5)


def _sure_rows(truth: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Rows [num_rows] whose likeliest token is far ahead, measured by transformers' own errors."""
    first, second = truth.topk(2, dim=-1).values.unbind(-1)
    noise = (theirs - truth).abs().amax(-1)
    return first - second > NOISE_FACTOR * noise


def _check_chunks(
    setup: Setup, model: Qwen3ForCausalLM, record: Record, sequences: Sequence[Sequence[int]]
) -> None:
    """A prompt's bits do not depend on how it is cut."""
    longest = max(sequences, key=len)
    whole = Steps(setup, model, [longest]).by_chunks(0, [len(longest)])
    for sizes in setup.sizes.chunks:
        cut = Steps(setup, model, [longest]).by_chunks(0, sizes)
        record.check(f"by chunks of {sizes}", torch.equal(whole, cut), _distance(whole, cut))
    other = [(longest[0] + 1) % model.config.vocab_size, *longest[1:]]
    changed = Steps(setup, model, [other]).by_chunks(0, [len(other)])
    record.check("another prompt differs", not torch.equal(whole[-1], changed[-1]))


def _check_companions(
    setup: Setup, model: Qwen3ForCausalLM, record: Record, sequences: Sequence[Sequence[int]]
) -> None:
    """A sequence's bits do not depend on what is computed with it."""
    subject = max(sequences, key=len)
    prompt_len = len(subject) - setup.sizes.num_decodes
    steps = [(0, 0, prompt_len), *((0, i, 1) for i in range(prompt_len, len(subject)))]
    alone = Steps(setup, model, [subject])
    expected = torch.cat([alone.compute([chunk])[0] for chunk in steps])
    vocab_size = model.config.vocab_size
    for count in setup.sizes.num_companions:
        # Of as many lengths as there are, so that prompts, chunks and decodes meet.
        lens = [setup.sizes.prompt_lens[i % len(setup.sizes.prompt_lens)] for i in range(count)]
        others = random_sequences(lens, vocab_size, seed=count, num_given=len(steps))
        together = Steps(setup, model, [subject, *others])
        found, done = [], [0] * count
        for number, chunk in enumerate(steps):
            beside = []
            for i, length in enumerate(lens):
                size = length if number == i % 3 else 1
                if number >= i % 3:
                    beside.append((i + 1, done[i], size))
                    done[i] += size
            place = number % (len(beside) + 1)
            chunks = [*beside[:place], chunk, *beside[place:]]
            found.append(together.compute(chunks)[place])
        logits = torch.cat(found)
        name = f"among {count} others"
        record.check(name, torch.equal(expected, logits), _distance(expected, logits))


def _check_graphs(
    setup: Setup, model: Qwen3ForCausalLM, record: Record, numerics: Numerics
) -> None:
    """A captured step has the bits of the same step launched kernel by kernel."""
    if not setup.is_gpu:
        record.skip(f"graphs in {numerics} mode", "only a GPU has them")
        return
    for num_seqs in setup.sizes.small_batches:
        name = f"graph of {num_seqs} sequences, {numerics}"
        with record.part(name):
            step = DecodeStep(setup, model, num_seqs, setup.sizes.small_context)
            step.run()
            eager = step.logits.clone()
            replay = step.captured()
            step.logits.fill_(float("nan"))
            replay()
            torch.cuda.synchronize()
            record.check(name, torch.equal(eager, step.logits), _distance(eager, step.logits))
            del step, replay
        release()


def _distance(a: torch.Tensor, b: torch.Tensor) -> str:
    if torch.equal(a, b):
        return "bits equal"
    rows = (a != b).any(-1)
    return f"{int(rows.sum())} of {len(rows)} rows differ, by up to {(a - b).abs().max():.1e}"
