"""The comparison of int8 and fp16 weights runs, on little work."""

from __future__ import annotations

import pytest

from benchmarks import quantization
from qwen3_ray.config import DEMO_MODEL_DIR


def test_accuracy_perplexity_and_memory_of_the_bundled_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = {
        "fp16": quantization.load(DEMO_MODEL_DIR),
        "int8": quantization.load(DEMO_MODEL_DIR, quantization="int8"),
    }
    quantization.print_accuracy(DEMO_MODEL_DIR, models)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["fp16", "int8", "fp32", "fp16", "int8"]
    ids = quantization.demo_tokens()
    full, byte = (quantization.perplexity(model, ids) for model in models.values())
    assert len(ids) > 200
    assert full != byte
    assert byte == pytest.approx(full, rel=0.01)
    sizes = [quantization.weight_bytes(model) for model in models.values()]
    assert 0.5 < sizes[1] / sizes[0] < 0.52


def test_both_models_are_timed() -> None:
    models = [quantization.load(DEMO_MODEL_DIR)] * 2
    assert all(seconds > 0 for seconds in quantization.step_seconds(models, (3, 9, 1), 1))
