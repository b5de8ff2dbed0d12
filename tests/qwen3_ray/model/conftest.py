from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.testing_models import TINY_MODEL, TINY_YARN, make_checkpoint
from tests.qwen3_ray.model.helpers import Checkpoint, OracleLogits

SHAPES = {
    "untied, 4:1 head groups": TINY_MODEL,
    "tied, no head groups": replace(TINY_MODEL, tie_word_embeddings=True, num_kv_heads=8),
    "head_dim 128, groups of 3": replace(
        TINY_MODEL, head_dim=128, num_heads=6, num_kv_heads=2, hidden_size=64, vocab_size=64
    ),
    "YaRN": TINY_YARN,
}
"""Each with heads x head_dim != hidden_size."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Directory of a shape of `SHAPES` in a dtype, or of the demo model (shape "demo")."""
    made: dict[tuple[str, str], Path] = {}

    def find(shape: str, dtype: str) -> Path:
        if shape == "demo":
            return DEMO_MODEL_DIR
        if (shape, dtype) not in made:
            config = replace(SHAPES[shape], dtype=dtype)
            made[shape, dtype] = make_checkpoint(tmp_path_factory.mktemp("model"), config)
        return made[shape, dtype]

    return find


@pytest.fixture(scope="session")
def oracle_logits() -> OracleLogits:
    """Logits of transformers' Qwen3 in fp32 with eager attention, [num_tokens, vocab_size]."""
    models: dict[Path, torch.nn.Module] = {}

    def compute(model_dir: Path, token_ids: list[int]) -> torch.Tensor:
        from transformers import Qwen3ForCausalLM as Oracle  # noqa: PLC0415 - seconds to import

        if model_dir not in models:
            models[model_dir] = Oracle.from_pretrained(
                model_dir, dtype=torch.float32, attn_implementation="eager"
            )
        with torch.no_grad():
            return models[model_dir](torch.tensor([token_ids])).logits[0]

    return compute
