import os
import sys
from pathlib import Path

import pytest
import torch

from qwen3_ray.config import DEMO_MODEL_DIR, EngineConfig
from qwen3_ray.engine import rank
from qwen3_ray.engine.fingerprint import architecture_name, numerics_fingerprint
from qwen3_ray.engine.rank import config_from_json, config_to_json
from qwen3_ray.engine.startup import choose_kv_layout
from qwen3_ray.errors import EngineError
from qwen3_ray.model.model_config import ModelConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (EngineError("rank 0 is gone"), "rank 1: rank 0 is gone"),
        (KeyError("key"), "KeyError: 'key'"),
    ],
)
def test_a_child_that_fails_is_gone_at_once(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after an interpreter's end, which may wait for a device or for other ranks."""

    def fail(*_: object, **__: object) -> None:
        raise error

    def leave(status: int) -> None:
        raise SystemExit(status)

    config = config_to_json(EngineConfig(model_dir=DEMO_MODEL_DIR))
    arguments = ["rank", "--rank", "1", "--rendezvous-dir", "x", "--config", config]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(rank, "serve_rank", fail)
    monkeypatch.setattr(rank, "_exit_with_parent", lambda: None)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="1"):
        rank.main()
    assert capsys.readouterr().err.endswith(f"{told}\n")


def test_a_config_survives_the_way_to_a_child() -> None:
    config = EngineConfig(
        model_dir=Path("/models/with space"), tensor_parallel_size=2, max_model_len=77, seed=-5
    )
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    ("size", "block_size", "dtype", "expected"),
    [
        (1, None, "auto", (32, 4, torch.float32)),
        (2, 8, "bfloat16", (8, 2, torch.bfloat16)),
        (8, None, "float32", (32, 1, torch.float32)),
    ],
)
def test_a_rank_holds_its_share_of_the_kv_heads(
    size: int, block_size: int | None, dtype: str, expected: tuple[int, int, torch.dtype]
) -> None:
    config = EngineConfig(
        model_dir=DEMO_MODEL_DIR,
        tensor_parallel_size=size,
        block_size=block_size,
        kv_cache_dtype=dtype,  # type: ignore[arg-type]
    )
    layout = choose_kv_layout(config, ModelConfig.from_dir(DEMO_MODEL_DIR), CPU)
    assert (layout.block_size, layout.num_kv_heads, layout.dtype) == expected


def test_a_fingerprint_changes_with_every_part_and_not_with_their_order() -> None:
    parts: dict[str, str | int | bool] = {"weights": "abc", "block_size": 32, "exact": True}
    fingerprint = numerics_fingerprint(parts)
    assert fingerprint == numerics_fingerprint(dict(reversed(parts.items())))
    assert len(fingerprint) == 64
    changes: list[dict[str, str | int | bool]] = [
        {"weights": "abd"},
        {"block_size": 16},
        {"exact": False},
        {"kernels": "x"},
    ]
    assert len({fingerprint, *(numerics_fingerprint(parts | change) for change in changes)}) == 5
    assert architecture_name(CPU)
