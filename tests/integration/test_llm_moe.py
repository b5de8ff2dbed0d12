"""A mixture of experts through the Python API, on two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qwen3_ray import LLM, RequestOutput, SamplingParams
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import TINY_MOE, engine_config, make_checkpoint

PROMPTS = [[5, 77, 130], list(range(40)), [200], [9] * 17]
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
DRAWN = replace(GREEDY, temperature=1.0, seed=7)


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_two_ranks_serve_experts_and_give_each_prompt_what_it_gets_alone(tmp_path: Path) -> None:
    """Prompts in chunks, beside decodes; the greedy tokens are those of one rank's logits."""
    model_dir = make_checkpoint(tmp_path, TINY_MOE)
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    with LLM(
        model_dir, tensor_parallel_size=2, max_model_len=64, max_num_seqs=4,
        max_num_batched_tokens=16,
    ) as llm:  # fmt: skip
        assert llm.info.exact
        greedy, drawn = (tokens_of(llm.generate(prompts, params)) for params in (GREEDY, DRAWN))
        for params, together in ((GREEDY, greedy), (DRAWN, drawn)):
            assert together == [tokens_of(llm.generate(prompt, params))[0] for prompt in prompts]
    model = load_model(engine_config(model_dir), TINY_MOE, TPGroup.single())
    for ids, generated in zip(PROMPTS, greedy, strict=True):
        logits = forward_logits(model, ids + generated)[len(ids) - 1 : -1]
        best = logits.topk(2).values
        decided = best[:, 0] - best[:, 1] >= 1e-3
        assert decided.float().mean() >= 0.9
        tokens = logits.argmax(dim=-1).tolist()
        assert [a for a, sure in zip(tokens, decided, strict=True) if sure] == [
            a for a, sure in zip(generated, decided, strict=True) if sure
        ]
