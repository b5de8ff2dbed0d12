"""Which GPU a rank takes, and that ranks share one only if they are told to."""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch

from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine import rank, startup
from qwen3_ray.engine.rank import build_engine, serve_rank
from qwen3_ray.engine.rendezvous import Rendezvous, check_gpus
from qwen3_ray.engine.startup import choose_device
from qwen3_ray.errors import EngineError, ResourcesError
from qwen3_ray.request import GenerateRequest
from qwen3_ray.runner.device_stream import InlineStream, Work
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
    other = threading.Thread(target=start, name="rank 1")
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


def test_a_rank_that_is_told_to_stop_waits_for_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are queued on the others read the memory of its process."""
    waits: list[str] = []

    class Stream(InlineStream):
        def mark(self) -> Work:
            return lambda: waits.append(threading.current_thread().name)

    monkeypatch.setattr(startup, "use_own_stream", lambda _: Stream())
    two_ranks_answer(make_checkpoint(tmp_path / "model"), tmp_path / "ranks", may_share=False)
    assert waits == ["rank 1"]


def test_captured_steps_of_a_rank_go_before_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL waits for the end of graphs that hold its kernels, before a group can end."""
    gone: list[str] = []

    class Graph:
        pass

    class Graphs:
        def __init__(self, tp: TPGroup) -> None:
            self.tp = tp  # goes first, with this object
            self.graph = Graph()

    def build_graphs(parts: startup.Rank, *_: object, **__: object) -> Graphs | None:
        tp = parts.model.tp
        if tp.rank == 0:
            return None
        graphs = Graphs(tp)
        weakref.finalize(graphs.graph, gone.append, "graph")
        weakref.finalize(tp.collectives, gone.append, "group")
        return graphs

    monkeypatch.setattr(rank, "build_graphs", build_graphs)
    two_ranks_answer(make_checkpoint(tmp_path / "model"), tmp_path / "ranks", may_share=False)
    assert gone == ["graph", "group"]


def test_ranks_listen_on_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise EngineError("far enough")

    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(Rendezvous, "_wait_for_all", stop)
    rendezvous = Rendezvous(rank=0, size=2, directory=tmp_path)
    with pytest.raises(EngineError, match="far enough"):
        rendezvous.connect(torch.device("cuda"), exact=True, on_progress=lambda _: None)
    assert os.environ["NCCL_SOCKET_IFNAME"] == os.environ["GLOO_SOCKET_IFNAME"] == "lo"
