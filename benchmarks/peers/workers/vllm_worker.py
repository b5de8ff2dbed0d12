"""vLLM's CPU build through its `LLM` class. On a CPU without bf16 it holds weights as fp32."""

from __future__ import annotations

from pathlib import Path

import vllm

from benchmarks.peers.workers.protocol import Generate, serve

MAX_NUM_SEQS = 16


def load(model_dir: Path, max_model_len: int) -> Generate:
    """See `protocol.Load`."""
    llm = vllm.LLM(
        model=str(model_dir),
        dtype="float32",
        max_model_len=max_model_len,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=max_model_len,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        params = vllm.SamplingParams(
            temperature=0,
            max_tokens=num_tokens,
            min_tokens=num_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
        )
        if any(len(output.outputs[0].token_ids) != num_tokens for output in outputs):
            raise RuntimeError("an output has another length than it should")
        return []

    return generate


if __name__ == "__main__":
    serve(load, vllm.__version__)
