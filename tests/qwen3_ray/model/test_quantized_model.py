"""Models whose weights are quantised at load: close to the full ones, and as exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_ray import LLM, SamplingParams
from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import CheckpointError, ConfigError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import KernelChoice, load_model
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import engine_config, make_checkpoint, run_ranks
from tests.qwen3_ray.model.helpers import Checkpoint, batched_logits, load, random_ids

SHAPES = ["demo", "wide experts"]


def load_int8(
    model_dir: Path, tp: TPGroup | None = None, kernels: KernelChoice = "auto"
) -> Qwen3ForCausalLM:
    config = engine_config(model_dir, quantization="int8")
    model_config = ModelConfig.from_dir(model_dir)
    return load_model(config, model_config, tp or TPGroup.single(), kernels=kernels)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_close_to_the_full_model(shape: str, checkpoint: Checkpoint) -> None:
    """But where a row's experts are others: some rows of a random model are near to that."""
    model_dir = checkpoint(shape, "bfloat16")
    ids = random_ids(model_dir, 77)
    full = forward_logits(load(model_dir, dtype="float32"), ids)
    errors = (forward_logits(load_int8(model_dir), ids) - full).norm(dim=1) / full.norm(dim=1)
    assert 1e-4 < errors.median() < 0.06


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_and_chunks_have_the_bits_of_each_alone(shape: str, checkpoint: Checkpoint) -> None:
    model_dir = checkpoint(shape, "bfloat16")
    model, ids = load_int8(model_dir), random_ids(model_dir, 70)
    assert model.exact
    alone = forward_logits(model, ids)
    for chunk in (1, 7, 64):
        assert torch.equal(forward_logits(model, ids, [chunk]), alone)
    for chunk in (1, 13):
        others = [ids[i : i + 3 * i + 2] for i in range(6)]
        assert torch.equal(batched_logits(model, [*others, ids], chunk)[-1], alone)


@pytest.mark.parametrize("size", [1, 2])
def test_fused_layers_have_the_bits_of_single_kernels(size: int, checkpoint: Checkpoint) -> None:
    model_dir = checkpoint("demo", "bfloat16")
    ids = random_ids(model_dir, 40)

    def run(tp: TPGroup) -> None:
        model = load_int8(model_dir, tp)
        assert model.is_fused
        for chunks in (None, [13, 1], [7]):
            fused = forward_logits(model, ids, chunks)
            assert torch.equal(fused, forward_logits(model.unfused(), ids, chunks))

    run_ranks(size, run)


def test_all_products_but_the_gates_are_quantised(checkpoint: Checkpoint) -> None:
    model = load_int8(checkpoint("experts and a dense layer", "bfloat16"))
    names = {(matrix.out_features, matrix.name) for matrix in model.matrices()}
    num_experts = 8
    assert {size for size, name in names if name == "fp16-panels"} == {num_experts}
    assert {name for _, name in names} == {"fp16-panels", "int8-panels"}
    assert load_int8(checkpoint("demo", "bfloat16")).kernel_names == "int8-panels+numba"


def test_other_kernels_than_the_cpus_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="int8 weights are for the CPU's kernels") as caught:
        load_int8(checkpoint("demo", "bfloat16"), kernels="reference")
    assert (caught.value.field, caught.value.value) == ("quantization", "int8")


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model")
    (file,) = model_dir.glob("*.safetensors")
    tensors = load_file(file)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name][3, 5] = float("nan")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=f"{name}.*NaN"):
        load_int8(model_dir)


def test_what_is_no_quantization_is_refused() -> None:
    what = r"^quantization = 'int4': must be one of none, int8, fp8$"
    with pytest.raises(ConfigError, match=what):
        engine_config(DEMO_MODEL_DIR, quantization="int4")


def test_an_engine_gives_each_prompt_the_same_tokens_in_any_batch() -> None:
    prompts = [f"The number {i} and what follows it" for i in range(5)]
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=12)
    with LLM() as full:
        fingerprint = full.info.numerics_fingerprint
    with LLM(quantization="int8") as llm:
        assert llm.info.exact
        assert llm.info.numerics_fingerprint != fingerprint
        together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        llm.reset_prefix_cache()
        alone = [llm.generate([prompt], params)[0].outputs[0].token_ids for prompt in prompts]
    assert together == alone
