"""The random checkpoints are what transformers would have saved for the same configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.make_checkpoint import SHAPES, make_checkpoint
from qwen3_ray.config import DEMO_MODEL_DIR


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_loads_it_without_a_missing_or_unknown_tensor(
    tmp_path: Path, tied: bool
) -> None:
    shape = replace(SHAPES["tiny"], tied=tied)
    make_checkpoint(shape, tmp_path, max_shard_bytes=100_000, tokenizer_dir=DEMO_MODEL_DIR)
    model, report = Qwen3ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert model.config.tie_word_embeddings is tied
    assert (tmp_path / "tokenizer.json").exists()


def test_every_tensor_is_in_the_shard_that_the_index_names(tmp_path: Path) -> None:
    make_checkpoint(SHAPES["tiny"], tmp_path, max_shard_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file.name)
    assert found == index["weight_map"]


@pytest.mark.parametrize(
    ("name", "parameters"), [("0.6b", 0.596e9), ("1.7b", 1.721e9), ("4b", 4.022e9), ("8b", 8.19e9)]
)
def test_the_shapes_have_the_published_numbers_of_parameters(name: str, parameters: float) -> None:
    count = sum(torch.Size(size).numel() for _, size in SHAPES[name].tensors())
    assert count == pytest.approx(parameters, rel=2e-3)


def test_the_configuration_is_complete_for_transformers() -> None:
    config = Qwen3Config(**SHAPES["4b"].config("bfloat16"))
    assert (config.head_dim, config.num_key_value_heads, config.hidden_size) == (128, 8, 2_560)
