"""Kernels that write a step's inputs, against the same in plain Python."""

from __future__ import annotations

import pytest
import torch

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.runner import triton_advance
from qwen3_ray.runner.cuda_graphs import StepKernels
from qwen3_ray.runner.device_stream import InlineStream
from qwen3_ray.runner.sampled_ring import NUM_TURNS, LaunchedRow, SampledRing
from qwen3_ray.runner.step_buffers import StepBuffers
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.fake_device import PlainKernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAX_SEQS, MAX_BLOCKS, BLOCK_SIZE = 300, 5, 16
POISON = -777


class Memory:
    """Buffers of decodes, the same ones whenever they are made."""

    def __init__(self, num_seqs: int, seed: int = 0) -> None:
        self.stream = InlineStream()
        self.buffers = StepBuffers(
            max_seqs=MAX_SEQS,
            max_tokens=MAX_SEQS,
            max_blocks=MAX_BLOCKS,
            block_size=BLOCK_SIZE,
            device=DEVICE,
            stream=self.stream,
        )
        self.ring = SampledRing(MAX_SEQS, DEVICE, self.stream)
        self.num_seqs = num_seqs
        generator = torch.Generator().manual_seed(seed)

        def draw(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

        fields, host = self.buffers.device, self.buffers.host
        for tensor in (fields.input_ids, fields.positions, fields.slot_mapping):
            tensor.fill_(POISON)
        self.buffers.block_tables.copy_(draw(0, 999, MAX_SEQS, MAX_BLOCKS))
        self.buffers.num_blocks.copy_(draw(0, MAX_BLOCKS + 1, MAX_SEQS))
        self.ring.ids.copy_(draw(-2, 5_000, NUM_TURNS, MAX_SEQS))
        self.ring.sampled.copy_(draw(-2, 5_000, MAX_SEQS))
        # Up to the last position of a table; now and then no sequence, or a border of blocks.
        lens = draw(0, MAX_BLOCKS * BLOCK_SIZE, MAX_SEQS)
        lens[::7], lens[::5] = 0, BLOCK_SIZE * 2
        fields.seq_lens.copy_(lens)
        host.sources[:] = draw(0, NUM_TURNS * MAX_SEQS, MAX_SEQS).numpy()
        host.sources[::3] = -1
        host.first_columns[:] = draw(-1, MAX_BLOCKS, MAX_SEQS).numpy()
        host.num_columns[:] = MAX_BLOCKS - host.first_columns
        host.num_columns[::2] = 0
        host.starts[:] = draw(0, 50, MAX_SEQS).numpy()
        host.seq_lens[:] = lens.numpy()
        self.blocks = draw(0, 999, 60).tolist()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that kernels may write."""
        rest = {"tables": self.buffers.block_tables, "num_blocks": self.buffers.num_blocks}
        rest |= {"ring": self.ring.ids, "turn": self.ring.turn}
        return self.buffers.device._asdict() | rest


def assert_equal(got: Memory, expected: Memory) -> None:
    for name, tensor in expected.tensors().items():
        assert torch.equal(got.tensors()[name], tensor), name


def memories(num_seqs: int) -> list[tuple[StepKernels, Memory]]:
    return [(triton_advance, Memory(num_seqs)), (PlainKernels(), Memory(num_seqs))]


@pytest.mark.parametrize("num_seqs", [1, 6, 37])
def test_what_is_sent_is_carried_out_for_these_rows_alone(num_seqs: int) -> None:
    pair = memories(num_seqs)
    for kernels, memory in pair:
        memory.buffers.send(memory.blocks)
        kernels.feed(memory.buffers, memory.ring, num_seqs)
    assert_equal(pair[0][1], pair[1][1])


@pytest.mark.parametrize("decodes", [True, False])
@pytest.mark.parametrize("num_seqs", [1, 24, MAX_SEQS])
def test_rows_go_on_by_what_was_sampled(num_seqs: int, decodes: bool) -> None:
    pair = memories(num_seqs)
    for kernels, memory in pair:
        for _ in range(NUM_TURNS + 1):
            memory.ring.sampled += 1
            kernels.advance(memory.buffers, memory.ring, num_seqs, decodes=decodes)
    assert_equal(pair[0][1], pair[1][1])


def test_tables_longer_than_a_block_of_lanes_are_written_whole() -> None:
    stream = InlineStream()
    buffers = StepBuffers(
        max_seqs=2, max_tokens=2, max_blocks=600, block_size=4, device=DEVICE, stream=stream
    )
    buffers.host.num_columns[:], buffers.host.starts[:] = 600, (0, 600)
    buffers.host.sources[:] = -1
    buffers.send(range(1_200))
    triton_advance.feed(buffers, SampledRing(2, DEVICE, stream), 2)
    assert torch.equal(buffers.block_tables.cpu(), torch.arange(1_200).view(2, 600).int())
    assert buffers.num_blocks.tolist() == [600, 600]


def test_turns_go_on_when_their_number_overflows() -> None:
    memory = Memory(4)
    memory.ring.turn.fill_(2**31 - 2)
    first = (2**31 - 2) % NUM_TURNS
    for count in range(3):
        memory.ring.sampled.fill_(count)
        triton_advance.advance(memory.buffers, memory.ring, 4, decodes=False)
        row = (first + count) % NUM_TURNS
        assert memory.ring.ids[row, :4].tolist() == [count] * 4


def test_the_host_takes_the_ids_of_each_turn() -> None:
    memory = Memory(3)
    launches = []
    for count in range(NUM_TURNS + 2):
        memory.ring.sampled.fill_(count)
        triton_advance.advance(memory.buffers, memory.ring, 3, decodes=False)
        launches.append(memory.ring.publish({}))
        for age, launch in enumerate(reversed(launches[-NUM_TURNS + 1 :])):
            assert launch.token_ids()[:3] == [count - age] * 3
            ids = memory.ring.ids.view(-1)[launch.first_source :][:3]
            assert ids.tolist() == [count - age] * 3


def test_a_source_names_a_requests_own_id() -> None:
    ring = Memory(3).ring
    request = RequestState("a", [1], 1, SamplingParams())
    ring.publish({})
    assert ring.publish({request: LaunchedRow(2, 0, 0)}).source(request) == MAX_SEQS + 2
