"""The engine, with its graphs, run-ahead and sampling, against its own model launched plainly."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from benchmarks.gpu.device import release
from benchmarks.gpu.ours import Steps, random_sequences
from benchmarks.gpu.record import Record
from benchmarks.gpu.setup import Setup
from qwen3_ray import LLM, SamplingParams
from qwen3_ray.config import DType, Numerics
from qwen3_ray.engine.prompts import TokensPrompt
from qwen3_ray.layers.kernels import KernelChoice

_KV_BYTES = 2 << 30
_FEW_KV_BYTES = 16 << 20


def check_engine(setup: Setup, record: Record, numerics: Numerics) -> None:
    """Greedy tokens are the likeliest ones, lowest ids first, of one pass over each sequence.

    To the bit in exact mode; in fast mode how many are is only noted.
    """
    if not setup.is_gpu and (setup.kernels == "triton" or not importlib.util.find_spec("numba")):
        record.skip(f"engine, {numerics}", "on a CPU it takes Numba's kernels")
        return
    lens = setup.sizes.prompt_lens
    prompts = random_sequences(lens, setup.config(setup.sizes.small).vocab_size, seed=1)
    sequences = [
        [*prompt, *output]
        for prompt, output in zip(prompts, _outputs(setup, prompts, numerics), strict=True)
    ]
    release()
    dtype, kernels = _engines_own(setup)
    model = setup.load(setup.sizes.small, numerics=numerics, dtype=dtype, kernels=kernels)
    cache_dtype = torch.bfloat16 if setup.is_gpu else torch.float32
    steps = Steps(setup, model, sequences, cache_dtype)
    logits = steps.compute([(i, 0, len(ids)) for i, ids in enumerate(sequences)])
    num_same = num_tokens = 0
    for prompt, ids, rows in zip(prompts, sequences, logits, strict=True):
        likeliest = _lowest_of_largest(rows)[len(prompt) - 1 : -1].tolist()
        num_same += sum(a == b for a, b in zip(likeliest, ids[len(prompt) :], strict=True))
        num_tokens += len(likeliest)
    detail = f"{num_same} of {num_tokens} tokens are the model's likeliest"
    if model.exact:
        record.check(f"engine, {numerics}", num_same == num_tokens, detail)
    else:
        record.row("Engine beside its model", mode=numerics, tokens=num_tokens, same=num_same)


def _engines_own(setup: Setup) -> tuple[DType, KernelChoice]:
    """What an engine takes unasked: on a CPU, kernels that are not Triton's."""
    return (setup.dtype, "auto") if setup.is_gpu else ("auto", "auto")


def _outputs(
    setup: Setup, prompts: Sequence[Sequence[int]], numerics: Numerics
) -> list[Sequence[int]]:
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=setup.sizes.num_decodes + 1)
    with LLM(
        setup.checkpoints.of(setup.sizes.small),
        device="cuda" if setup.is_gpu else "cpu",
        dtype=_engines_own(setup)[0],
        numerics=numerics,
        max_num_seqs=len(prompts),
        max_model_len=max(map(len, prompts)) + setup.sizes.num_decodes + 1,
        kv_cache_memory=_KV_BYTES if setup.is_gpu else _FEW_KV_BYTES,
        skip_tokenizer_init=True,
        generation_config="none",
    ) as llm:
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts], params
        )
    return [output.outputs[0].token_ids for output in outputs]


def _lowest_of_largest(logits: torch.Tensor) -> torch.Tensor:
    """[num_rows, vocab_size] -> [num_rows]; `argmax` may choose any of equals."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    is_largest = logits == logits.amax(-1, keepdim=True)
    return torch.where(is_largest, ids, logits.shape[-1]).amin(-1)
