from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.testing_models import TINY_MOE, make_checkpoint
from tests.exactness.rig import Rig, running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two layers of random weights, whose logits are far apart."""
    with running(make_checkpoint(tmp_path_factory.mktemp("tiny")), block_size=16) as rig:
        yield rig


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The same with keys and values in float16."""
    model_dir = make_checkpoint(tmp_path_factory.mktemp("halves"))
    with running(model_dir, block_size=16, kv_cache_dtype="float16") as rig:
        yield rig


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A mixture of experts: how many rows share an expert's product depends on the batch."""
    with running(make_checkpoint(tmp_path_factory.mktemp("moe"), TINY_MOE)) as rig:
        yield rig


@pytest.fixture(scope="session")
def demo() -> Iterator[Rig]:
    """The trained model that is bundled, its kernels on two threads."""
    with running(DEMO_MODEL_DIR, num_threads=2) as rig:
        yield rig
