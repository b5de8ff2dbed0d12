from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.model.moe_config import MoEConfig
from qwen3_ray.testing_models import TINY_MODEL, TINY_MOE, TINY_YARN, make_checkpoint
from tests.qwen3_ray.model.helpers import Checkpoint, OracleLogits

UNNORMALISED = MoEConfig(
    num_experts=16,
    num_experts_per_tok=5,
    moe_intermediate_size=32,
    norm_topk_prob=False,
    decoder_sparse_step=2,
    mlp_only_layers=frozenset(),
)
WIDE_EXPERTS = replace(
    TINY_MOE,
    hidden_size=192,
    num_layers=2,
    moe=replace(UNNORMALISED, moe_intermediate_size=512, decoder_sparse_step=1),
)
"""As wide as the demo model: in products of fewer columns bits rarely depend on the rows."""

SHAPES = {
    "untied, 4:1 head groups": TINY_MODEL,
    "tied, no head groups": replace(TINY_MODEL, tie_word_embeddings=True, num_kv_heads=8),
    "head_dim 128, groups of 3": replace(
        TINY_MODEL, head_dim=128, num_heads=6, num_kv_heads=2, hidden_size=64, vocab_size=64
    ),
    "YaRN": TINY_YARN,
    "experts and a dense layer": TINY_MOE,
    "experts, weights not normalised": replace(TINY_MOE, moe=UNNORMALISED),
}
"""Each with heads x head_dim != hidden_size."""
EXPERTS = [shape for shape, config in SHAPES.items() if config.moe]


@pytest.fixture(scope="module", autouse=True)
def num_threads() -> Iterator[None]:
    """One: models as small as these take longer to share out than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Directory of a shape in a dtype: of `SHAPES`, "wide experts", or the demo model ("demo")."""
    made: dict[tuple[str, str], Path] = {}

    def find(shape: str, dtype: str) -> Path:
        if shape == "demo":
            return DEMO_MODEL_DIR
        if (shape, dtype) not in made:
            config = WIDE_EXPERTS if shape == "wide experts" else SHAPES[shape]
            config = replace(config, dtype=dtype)
            made[shape, dtype] = make_checkpoint(tmp_path_factory.mktemp("model"), config)
        return made[shape, dtype]

    return find


@pytest.fixture(scope="session")
def oracle_logits() -> OracleLogits:
    """Logits of transformers' model in fp32, all eager, [num_tokens, vocab_size]."""
    models: dict[Path, torch.nn.Module] = {}

    def compute(model_dir: Path, token_ids: list[int]) -> torch.Tensor:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - seconds to import

        if model_dir not in models:
            models[model_dir] = AutoModelForCausalLM.from_pretrained(
                model_dir,
                dtype=torch.float32,
                attn_implementation="eager",
                experts_implementation="eager",
            )
        with torch.no_grad():
            return models[model_dir](torch.tensor([token_ids])).logits[0]

    return compute
