"""A mixture of experts with Triton's kernels: loaded as others load it, and with their results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import CheckpointError
from qwen3_ray.layers.triton_experts import TritonExperts
from qwen3_ray.model.qwen3_moe import StackedMLP
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import TINY_MOE, make_checkpoint
from tests.qwen3_ray.model.conftest import EXPERTS
from tests.qwen3_ray.model.helpers import FP32_BOUND, Checkpoint, load, random_ids, relative_error

NUM_TOKENS = 12


@pytest.mark.parametrize("shape", EXPERTS)
def test_logits_are_those_of_the_reference(shape: str, checkpoint: Checkpoint) -> None:
    model_dir = checkpoint(shape, "float32")
    ids = random_ids(model_dir, NUM_TOKENS)
    model = load(model_dir, dtype="float32", kernels="triton")
    assert any(isinstance(layer.mlp, StackedMLP) for layer in model._layers)
    expected = forward_logits(load(model_dir, dtype="float32", kernels="reference"), ids)
    assert relative_error(forward_logits(model, ids), expected) <= FP32_BOUND


def test_a_row_has_the_same_bits_in_any_chunk(checkpoint: Checkpoint) -> None:
    model_dir = checkpoint(EXPERTS[0], "float32")
    ids = random_ids(model_dir, NUM_TOKENS)
    model = load(model_dir, dtype="float32", kernels="triton")
    assert model.exact
    assert torch.equal(forward_logits(model, ids, [5]), forward_logits(model, ids))


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_stacks_its_share_of_whole_experts(rank: int, tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", TINY_MOE)
    tensors = load_file(model_dir / "model.safetensors")
    tp = TPGroup(rank, 4)
    model = load(model_dir, tp, dtype="float32", kernels="triton")
    assert model.num_bytes_read == load(model_dir, tp, kernels="reference").num_bytes_read
    mlp = model._layers[2].mlp
    assert isinstance(mlp, StackedMLP)
    assert isinstance(mlp.experts, TritonExperts)
    for index in (0, 1):
        prefix = f"model.layers.2.mlp.experts.{2 * rank + index}"
        gate, up, down = (tensors[f"{prefix}.{x}_proj.weight"] for x in ("gate", "up", "down"))
        assert torch.equal(mlp.experts._gate_up[index], torch.cat([gate, up]).float())
        assert torch.equal(mlp.experts._down[index], down.float())


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_a_weight_that_is_no_number_is_named(projection: str, tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model", TINY_MOE)
    tensors = load_file(model_dir / "model.safetensors")
    name = f"model.layers.2.mlp.experts.5.{projection}_proj.weight"
    tensors[name][3, 4] = float("nan")
    save_file(tensors, model_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
        load(model_dir, dtype="float32", kernels="triton")
    assert caught.value.tensor == name
