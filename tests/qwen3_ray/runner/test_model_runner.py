"""The runner hands the model what a step says, and the plan that its rows were padded by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from qwen3_ray.distributed.control import StepArrays
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.layers.row_plan import RowPlan
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
    model: Qwen3ForCausalLM, plan: RowPlan, sequences: Sequence[Sequence[int]], num_logits: int
) -> torch.Tensor | None:
    """All sequences in one step that wants the last logits of the first `num_logits`."""
    cache = SequenceCache(model, [len(ids) for ids in sequences])
    chunks = [(index, 0, len(ids)) for index, ids in enumerate(sequences)]
    num_rows = plan.pad(sum(map(len, sequences)))
    metadata = cache.metadata(chunks, num_rows)
    input_ids, positions = np.zeros((2, num_rows), np.int32)
    input_ids[: metadata.num_tokens] = np.concatenate(sequences)
    positions[: metadata.num_tokens] = np.concatenate([range(len(ids)) for ids in sequences])
    logits_indices = np.zeros(plan.pad(num_logits), np.int32)
    logits_indices[:num_logits] = metadata.query_start_loc[1 : num_logits + 1] - 1
    arrays = StepArrays(
        input_ids=input_ids,
        positions=positions,
        slot_mapping=metadata.slot_mapping.numpy(),
        query_start_loc=metadata.query_start_loc.numpy(),
        seq_lens=metadata.seq_lens.numpy(),
        block_tables=metadata.block_tables.numpy(),
        logits_indices=logits_indices,
        num_tokens=metadata.num_tokens,
        num_logits=num_logits,
    )
    return ModelRunner(model, cache.caches, BLOCK_SIZE, plan).execute(arrays)


def last_logits(
    model: Qwen3ForCausalLM, plan: RowPlan, sequences: Sequence[Sequence[int]]
) -> torch.Tensor:
    logits = prefill(model, plan, sequences, len(sequences))
    assert logits is not None
    assert logits.shape == (plan.pad(len(sequences)), model.config.vocab_size)
    return logits[: len(sequences)]


def test_logits_are_those_of_the_wanted_rows(model: Qwen3ForCausalLM) -> None:
    logits = last_logits(model, RowPlan(), SEQUENCES)
    for row, ids in zip(logits, SEQUENCES, strict=True):
        torch.testing.assert_close(row, forward_logits(model, ids)[-1], rtol=1e-4, atol=1e-3)


def test_experts_are_padded_by_the_runners_plan(model: Qwen3ForCausalLM) -> None:
    """Each sequence keeps its bits beside the others; without the plan some do not."""
    plan = model.find_row_plan("exact", 64)
    assert plan.exact
    alone = [last_logits(model, plan, [ids])[0] for ids in SEQUENCES]
    assert torch.equal(last_logits(model, plan, SEQUENCES), torch.stack(alone))
    unpadded = [last_logits(model, RowPlan(), [ids])[0] for ids in SEQUENCES]
    assert not torch.equal(last_logits(model, RowPlan(), SEQUENCES), torch.stack(unpadded))


def test_a_step_that_wants_no_logits_gives_none(model: Qwen3ForCausalLM) -> None:
    assert prefill(model, RowPlan(), SEQUENCES, 0) is None
