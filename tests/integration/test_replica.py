"""One replica on a real Ray: its ranks start, answer, and are missed when they die."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config import DeployConfig
from cluster.link.client import LinkClient, LinkStream
from cluster.ops.local_ray import own_ray
from cluster.ops.progress import read_all
from cluster.ops.resources import replica_bundles
from cluster.replica.replica import Replica
from protos.v1 import link_pb2 as link
from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import CheckpointError, ConfigError, EngineError, UnavailableError

TOKEN = "a-secret"
LIMIT_S = 120.0
NUM_RANKS = 2

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)  # token, for a cluster of our own
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)  # own_ray makes one
        with own_ray(4):
            yield


@pytest.fixture
def bundles() -> Iterator[PlacementGroup]:
    group = placement_group(replica_bundles(NUM_RANKS, "cpu"), strategy="STRICT_PACK")
    ray.get(group.ready(), timeout=60)
    yield group
    remove_placement_group(group)


class Exit:
    """Stands for the end of the front's process."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    def __call__(self) -> None:
        self.left.set()


async def start(
    config: DeployConfig, bundles: PlacementGroup, leave: Exit | None = None, name: str = "replica"
) -> Replica:
    async with asyncio.timeout(LIMIT_S):
        return await Replica.start(
            config,
            link_token=TOKEN,
            replica_id=name,
            ip_address="127.0.0.1",
            placement_group=bundles,
            leave=leave or Exit(),
        )


@asynccontextmanager
async def linked(replica: Replica) -> AsyncIterator[LinkClient]:
    client = LinkClient(replica.address, TOKEN)
    await client.connect()
    try:
        yield client
    finally:
        await client.close()


def make_submit(request_id: str, max_tokens: int = 24) -> link.Submit:
    sampling = link.Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens, ignore_eos=True)
    return link.Submit(request_id=request_id, prompt_token_ids=[5, 6, 7, 8], sampling=sampling)


async def read_to_the_end(stream: LinkStream) -> None:
    async with asyncio.timeout(5.0):
        async for _ in stream:
            pass


def is_rank(process: psutil.Process) -> bool:
    try:
        return "RankWorker" in " ".join(process.cmdline())
    except psutil.Error:  # gone, or dead and not buried yet
        return False


def rank_processes() -> list[psutil.Process]:
    return list(filter(is_rank, psutil.Process().children(recursive=True)))


async def until_no_rank_is_left() -> None:
    async with asyncio.timeout(10.0):
        while rank_processes():  # noqa: ASYNC110  (processes have no event of ours)
            await asyncio.sleep(0.05)


@pytest.fixture
def short_temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where this process makes its temporary files; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="q3-") as directory:
        monkeypatch.setattr("tempfile.tempdir", directory)
        yield directory


async def test_ranks_start_answer_resume_and_leave_nothing_behind(
    bundles: PlacementGroup, short_temp_dir: str
) -> None:
    replica = await start(DeployConfig(max_num_seqs=8), bundles, name="first")
    assert len(rank_processes()) == NUM_RANKS
    assert read_all()["first/0"].stage == "ready"
    replica.require_progress()

    async with linked(replica) as client:
        assert client.hello.tensor_parallel_size == NUM_RANKS
        assert client.hello.numerics_fingerprint
        undisturbed = [delta async for delta in client.open(make_submit("whole"))]
        ids = [token_id for delta in undisturbed for token_id in delta.token_ids]
        text = "".join(delta.text for delta in undisturbed)
        assert len(ids) == 24
        broken = client.open(make_submit("broken"))
        received = [await anext(broken) for _ in range(3)]
    async with linked(replica) as client:
        num_received = sum(len(delta.token_ids) for delta in received)
        received += [delta async for delta in client.attach("broken", num_received)]
        assert [token_id for delta in received for token_id in delta.token_ids] == ids
        assert "".join(delta.text for delta in received) == text
        assert replica.load().num_waiting_tokens == 0

        running = client.open(make_submit("running", max_tokens=2_000))
        await anext(running)
        await replica.stop(drain_limit_s=0.0)
        with pytest.raises(UnavailableError, match="shut down"):
            await read_to_the_end(running)
    await until_no_rank_is_left()
    assert await asyncio.to_thread(os.listdir, short_temp_dir) == []


@pytest.mark.fault
@pytest.mark.parametrize("rank", range(NUM_RANKS))
async def test_the_death_of_any_rank_is_the_end_of_the_replica(
    bundles: PlacementGroup, rank: int
) -> None:
    leave = Exit()
    replica = await start(DeployConfig(max_num_seqs=8), bundles, leave)
    async with linked(replica) as client:
        stream = client.open(make_submit("a", max_tokens=2_000))
        await anext(stream)
        rank_processes()[rank].kill()
        with pytest.raises(UnavailableError, match="lost its engine"):
            await read_to_the_end(stream)
        with pytest.raises(EngineError, match=r"rank \d"):
            replica.require_progress()
    async with asyncio.timeout(5.0):
        await leave.left.wait()
    await until_no_rank_is_left()


async def test_a_damaged_checkpoint_is_told_as_the_rank_found_it(
    bundles: PlacementGroup, tmp_path: Path
) -> None:
    model_dir = shutil.copytree(DEMO_MODEL_DIR, tmp_path / "model")
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1_000])
    config = DeployConfig(model=str(model_dir), tensor_parallel_size=NUM_RANKS)
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        await start(config, bundles)
    await until_no_rank_is_left()


async def test_a_setting_that_cannot_work_is_told_as_such(bundles: PlacementGroup) -> None:
    with pytest.raises(ConfigError, match="max_model_len"):
        await start(DeployConfig(max_model_len=10**6), bundles)
    await until_no_rank_is_left()
