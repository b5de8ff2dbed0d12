"""The runner hands the model what a step says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from qwen3_ray.distributed.control import StepArrays
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.qwen3 import Qwen3ForCausalLM
from qwen3_ray.model.weights import load_model
from qwen3_ray.runner.model_runner import ModelRunner
from qwen3_ray.testing_forward import BLOCK_SIZE, SequenceCache, forward_logits
from qwen3_ray.testing_models import TINY_MOE, engine_config, make_checkpoint

SEQUENCES = [[3, 1, 4, 1, 5], [92], [6, 5] * 20, list(range(11))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Qwen3ForCausalLM:
    model_dir = make_checkpoint(tmp_path_factory.mktemp("model"), TINY_MOE)
    return load_model(engine_config(model_dir), TINY_MOE, TPGroup.single())


def prefill(
    model: Qwen3ForCausalLM, sequences: Sequence[Sequence[int]], num_logits: int
) -> torch.Tensor | None:
    """All sequences in one step that wants the last logits of the first `num_logits`."""
    cache = SequenceCache(model, [len(ids) for ids in sequences])
    metadata = cache.metadata([(index, 0, len(ids)) for index, ids in enumerate(sequences)])
    positions = np.concatenate([range(len(ids)) for ids in sequences])
    arrays = StepArrays(
        input_ids=np.concatenate(sequences).astype(np.int32),
        positions=positions.astype(np.int32),
        slot_mapping=metadata.slot_mapping.numpy(),
        query_start_loc=metadata.query_start_loc.numpy(),
        seq_lens=metadata.seq_lens.numpy(),
        block_tables=metadata.block_tables.numpy(),
        logits_indices=metadata.query_start_loc[1 : num_logits + 1].numpy() - 1,
    )
    return ModelRunner(model, cache.caches, BLOCK_SIZE).execute(arrays)


@pytest.mark.parametrize("num_logits", [1, len(SEQUENCES)])
def test_logits_are_those_of_the_wanted_rows(model: Qwen3ForCausalLM, num_logits: int) -> None:
    logits = prefill(model, SEQUENCES, num_logits)
    assert logits is not None
    for row, ids in zip(logits, SEQUENCES[:num_logits], strict=True):
        assert torch.equal(row, forward_logits(model, ids)[-1])


def test_a_step_that_wants_no_logits_gives_none(model: Qwen3ForCausalLM) -> None:
    assert prefill(model, SEQUENCES, 0) is None
