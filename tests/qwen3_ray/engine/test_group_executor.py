"""The executor of the ranks: what it tells the others, and what it compiles before it serves."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest, Step
from qwen3_ray.distributed.control import Kind, StepArrays, StepControl
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.runner.input_batch import build
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import TINY_MODEL, TINY_MOE, make_checkpoint

BLOCK_SIZE = 4
CPU = torch.device("cpu")


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Prefills that want prompt logprobs and decodes with drafts: many logit rows of a request."""
    items = []
    for index in range(draw(st.integers(1, 6))):
        length, num_drafts = draw(st.integers(1, 20)), draw(st.integers(0, 4))
        request = RequestState(
            str(index),
            list(range(length)),
            length,
            SamplingParams(prompt_logprobs=draw(st.sampled_from((None, 2)))),
            block_ids=list(range(100 * index, 100 * index + 7)),
            draft_token_ids=[7] * num_drafts,
        )
        items.append(ScheduledRequest(request, length + num_drafts, num_drafts))
    return Step(tuple(items))


@settings(max_examples=30, deadline=None)
@given(frames=st.lists(steps(), min_size=1, max_size=3))
def test_other_ranks_get_every_row_of_steps_with_drafts_and_prompt_logprobs(
    frames: list[Step],
) -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        follower = pool.submit(StepControl.rendezvous, store, 1, 2, device=CPU, timeout_s=10)
        leader = StepControl.rendezvous(store, 0, 2, device=CPU, timeout_s=10)
        for step in frames:
            received = pool.submit(follower.result().receive)
            sent = build(step, BLOCK_SIZE)
            leader.send(Kind.STEP, sent)
            kind, got = received.result()
            assert (kind, got and got.num_logits) == (Kind.STEP, sent.num_logits)
            assert sent.num_logits >= sum(item.num_logits for item in step.scheduled)
            for name in StepArrays.__slots__:
                np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))


COUNT_COMPILED = """
import sys, tempfile
from pathlib import Path
from qwen3_ray.engine.rank import build_engine
from qwen3_ray.testing_models import engine_config
from tests.exactness.rig import MAX_MODEL_LEN
from tests.exactness.specs import make_specs

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("qwen3_ray")]
    return {
        (value.py_func.__module__, value.py_func.__name__): len(value.signatures)
        for module in modules for value in vars(module).values() if hasattr(value, "signatures")
    }

config = engine_config(Path(sys.argv[1]), max_model_len=MAX_MODEL_LEN, num_threads=1)
with tempfile.TemporaryDirectory() as directory:
    engine = build_engine(config, rendezvous_dir=Path(directory))
before = compiled()
for index, spec in enumerate(make_specs(engine.info.vocab_size, 20)):
    engine.add_request(spec.request(str(index)))
while engine.has_unfinished:
    engine.step()
after = compiled()
print(len(before), sorted(name for name in after if after[name] != before.get(name)))
"""


@pytest.mark.parametrize("shape", [TINY_MODEL, TINY_MOE], ids=["dense", "experts"])
def test_no_request_waits_for_a_kernel_to_be_compiled(shape: ModelConfig, tmp_path: Path) -> None:
    """In a process of its own: here the kernels are compiled already."""
    model_dir = make_checkpoint(tmp_path, shape)
    command = [sys.executable, "-c", COUNT_COMPILED, str(model_dir)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split(
        " ", 1
    )
    assert int(output[0]) >= 5  # kernels that are known
    assert output[1].strip() == "[]"
