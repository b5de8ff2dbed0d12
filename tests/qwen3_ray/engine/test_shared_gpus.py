"""Which GPU a rank takes, and that ranks share one only if they are told to."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from qwen3_ray.engine.rank import build_engine, serve_rank
from qwen3_ray.engine.rendezvous import check_gpus
from qwen3_ray.engine.startup import choose_device
from qwen3_ray.errors import ResourcesError
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.testing_models import engine_config, make_checkpoint

NUM_TOKENS = 12


@pytest.mark.parametrize(
    ("num_gpus", "may_share", "expected"),
    [(0, True, None), (1, False, 0), (1, True, 0), (2, False, None), (2, True, 1), (4, False, 3)],
)
def test_rank_3_of_4_takes_its_gpu_or_says_that_there_are_too_few(
    num_gpus: int, may_share: bool, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that sees one GPU may have been given just that one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    config = engine_config(Path("model"), device="cuda", tensor_parallel_size=4)
    if expected is None:
        with pytest.raises(ResourcesError, match="needs as many GPUs"):
            choose_device(config, 3, may_share=may_share)
    else:
        assert choose_device(config, 3, may_share=may_share) == torch.device("cuda", expected)


def test_ranks_with_one_gpu_are_told_before_nccl_refuses() -> None:
    check_gpus([7, 5, 6])
    with pytest.raises(ResourcesError, match="ranks 1 and 2 have the same one"):
        check_gpus([7, 5, 5])


def two_ranks_answer(model_dir: Path, rendezvous_dir: Path, *, may_share: bool) -> list[int]:
    config = engine_config(model_dir, tensor_parallel_size=2, max_model_len=64, num_threads=1)
    rendezvous_dir.mkdir()
    start = partial(serve_rank, config, 1, rendezvous_dir=rendezvous_dir, may_share_gpus=may_share)
    other = threading.Thread(target=start)
    other.start()
    engine = build_engine(config, rendezvous_dir=rendezvous_dir, may_share_gpus=may_share)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, seed=0)
    engine.add_request(GenerateRequest(request_id="one", prompt_token_ids=(5, 6, 7), params=params))
    token_ids: list[int] = []
    while engine.has_unfinished:
        for delta in engine.step():
            token_ids += delta.token_ids
    engine.close()
    other.join()
    return token_ids


def test_ranks_that_speak_through_the_host_answer_as_others_do(tmp_path: Path) -> None:
    model_dir = make_checkpoint(tmp_path / "model")
    expected = two_ranks_answer(model_dir, tmp_path / "memory", may_share=False)
    assert len(expected) == NUM_TOKENS
    assert two_ranks_answer(model_dir, tmp_path / "staged", may_share=True) == expected
