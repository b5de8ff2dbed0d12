"""How a model's weights are held for Triton's kernels, and what is refused."""

from __future__ import annotations

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.errors import ConfigError
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import KernelChoice, load_model
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import engine_config
from tests.qwen3_ray.model.helpers import FP32_BOUND, Checkpoint, random_ids, relative_error

SHAPE = "untied, 4:1 head groups"
CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(
    checkpoint: Checkpoint,
    kernels: KernelChoice = "triton",
    *,
    device: torch.device = DEVICE,
    **settings: str,
) -> Qwen3ForCausalLM:
    model_dir = checkpoint(SHAPE, "bfloat16")
    config = engine_config(model_dir, **{"numerics": "exact", "dtype": "float32", **settings})
    model_config = ModelConfig.from_dir(model_dir)
    return load_model(config, model_config, TPGroup.single(), device=device, kernels=kernels)


def names(model: Qwen3ForCausalLM) -> set[str]:
    return {matrix.name for matrix in model.matrices()}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "fp32-triton-exact"),
        ({"dtype": "bfloat16"}, "bf16-triton-exact"),
        ({"numerics": "fast"}, "float32"),
        ({"numerics": "fast", "dtype": "float16"}, "float16"),
        ({"quantization": "fp8"}, "fp8-scaled-mm"),
    ],
    ids=str,
)
def test_the_mode_decides_how_weights_are_held(
    settings: dict[str, str], name: str, checkpoint: Checkpoint
) -> None:
    model = load(checkpoint, **settings)
    assert names(model) == {name}
    assert all(m.row_invariant == ("exact" in name) for m in model.matrices())


def test_exact_products_give_the_logits_of_plain_torch(checkpoint: Checkpoint) -> None:
    ids = random_ids(checkpoint(SHAPE, "bfloat16"), 9)
    expected = forward_logits(load(checkpoint, "reference"), ids)
    assert relative_error(forward_logits(load(checkpoint), ids), expected) < 10 * FP32_BOUND


def test_float8_gives_logits_near_them(checkpoint: Checkpoint) -> None:
    ids = random_ids(checkpoint(SHAPE, "bfloat16"), 9)
    expected = forward_logits(load(checkpoint, "reference"), ids)
    error = (forward_logits(load(checkpoint, quantization="fp8"), ids) - expected).norm()
    assert 1e-3 < error / expected.norm() < 0.2


@pytest.mark.parametrize(
    ("kernels", "quantization", "what"),
    [
        ("numba", "fp8", "numba, on cpu"),
        ("reference", "fp8", "reference, on cpu"),
        ("triton", "int8", "triton-exact, on cpu"),
    ],
)
def test_a_quantization_of_other_kernels_is_refused(
    kernels: KernelChoice, quantization: str, what: str, checkpoint: Checkpoint
) -> None:
    if kernels == "numba":
        pytest.importorskip("numba")  # a machine with a GPU needs none
    with pytest.raises(ConfigError, match=f"those here are {what}") as caught:
        load(checkpoint, kernels, device=CPU, quantization=quantization)
    assert (caught.value.field, caught.value.value) == ("quantization", quantization)


def test_a_device_without_float8_products_is_named(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100")
    with pytest.raises(ConfigError, match=r"8.9 and above.*triton-exact, on NVIDIA A100"):
        load(checkpoint, device=torch.device("cuda"), quantization="fp8")


def test_narrow_activations_are_for_interpreted_kernels_only(checkpoint: Checkpoint) -> None:
    pytest.importorskip("numba")
    with pytest.raises(ConfigError, match="on CPU only auto"):
        load(checkpoint, "numba", device=CPU, dtype="bfloat16")
