"""What is sent for a step of decodes, given what the device holds; and the copy itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.core.request_state import RequestState
from qwen3_ray.core.step import ScheduledRequest
from qwen3_ray.runner.device_step import DecodeRow, DeviceStep, place_prompts
from qwen3_ray.runner.device_stream import DeviceStream, InlineStream
from qwen3_ray.runner.sampled_ring import Launch, SampledRing
from qwen3_ray.runner.sampling_rows import packed_row
from qwen3_ray.runner.step_buffers import StepBuffers
from qwen3_ray.sampling_params import SamplingParams
from tests.qwen3_ray.runner.fake_device import CPU, LazyStream, PlainKernels

MAX_SEQS, MAX_BLOCKS, BLOCK_SIZE = 6, 8, 4


def make_buffers(stream: DeviceStream, max_tokens: int = MAX_SEQS) -> StepBuffers:
    return StepBuffers(
        max_seqs=MAX_SEQS,
        max_tokens=max_tokens,
        max_blocks=MAX_BLOCKS,
        block_size=BLOCK_SIZE,
        device=CPU,
        stream=stream,
    )


def make_request(name: int, num_tokens: int, num_blocks: int) -> RequestState:
    params = SamplingParams(
        temperature=0.05 * name, top_k=name % 2, top_p=0.9, min_p=0.1, seed=2**40 + name
    )
    token_ids = [100 * name + position for position in range(num_tokens)]
    block_ids = [1_000 * name + index for index in range(num_blocks)]
    return RequestState(str(name), token_ids, 1, params, block_ids=block_ids, choice=name)


class Device:
    """Runs steps as `GraphRunner` does, and looks at what they would compute."""

    def __init__(self, stream: DeviceStream) -> None:
        self.stream = stream
        self.buffers = make_buffers(stream)
        self.ring = SampledRing(MAX_SEQS, CPU, stream)
        self.step = DeviceStep(self.buffers)
        self.samplings: dict[RequestState, bytes] = {}
        self.num_sampled = 0

    def run(self, rows: Sequence[DecodeRow]) -> Launch:
        for row in rows:
            self.samplings[row.request] = packed_row(row.request)
        if self.step.place(rows, self.samplings):
            count = self.step.num_seqs
            self.stream.run(lambda: PlainKernels().feed(self.buffers, self.ring, count))
        launched = self.step.launched()
        self.stream.mark()()
        self.check(rows, [launched[row.request].row for row in rows])
        self.ring.sampled[:] = torch.arange(self.num_sampled, self.num_sampled + MAX_SEQS)
        self.num_sampled += MAX_SEQS
        PlainKernels().advance(self.buffers, self.ring, MAX_SEQS, decodes=True)
        launch = self.ring.publish(launched)
        self.step.advance(launch.first_source)
        return launch

    def check(self, rows: Sequence[DecodeRow], places: Sequence[int]) -> None:
        count = len(rows)
        assert sorted(places) == list(range(count))
        fields = self.buffers.device
        assert fields.query_start_loc.tolist() == [min(i, count) for i in range(MAX_SEQS + 1)]
        assert fields.seq_lens[count:].tolist() == [0] * (MAX_SEQS - count)
        assert fields.slot_mapping[count:].tolist() == [-1] * (MAX_SEQS - count)
        for row, (request, position, source) in zip(places, rows, strict=True):
            block_ids = request.block_ids
            assert self.buffers.block_tables[row, : len(block_ids)].tolist() == block_ids
            assert self.buffers.num_blocks[row] == len(block_ids)
            assert fields.positions[row] == position
            assert fields.seq_lens[row] == position + 1
            slot = block_ids[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            assert fields.slot_mapping[row] == slot
            known = request.token_ids[position] if source < 0 else self.ring.ids.view(-1)[source]
            assert fields.input_ids[row] == known
            params = request.params
            rows_of = self.buffers.views(MAX_SEQS, MAX_SEQS).rows
            assert rows_of.temperature[row] == pytest.approx(params.temperature)
            assert (rows_of.top_k[row], rows_of.seed[row]) == (params.top_k, params.seed)
            assert (rows_of.choice[row], rows_of.position[row]) == (request.choice, position + 1)
            assert rows_of.top_p[row] == pytest.approx(0.9)


class Crowd:
    """Requests that come, go, get blocks, lose some, and go back."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.positions: dict[RequestState, int] = {}

    def change(self, name: int) -> None:
        draw, positions = self.draw, self.positions
        for request in list(positions):
            positions[request] += 1
            if draw.random() < 0.1 or positions[request] == 32:
                del positions[request]
        if len(positions) < MAX_SEQS and draw.random() < 0.5:
            positions[make_request(name, 32, draw.randint(2, MAX_BLOCKS))] = draw.randint(0, 4)
        for request in positions:
            if draw.random() < 0.05:  # lost all blocks, and got others
                positions[request] = 3
                request.block_ids = [draw.randint(0, 999) for _ in range(3)]
            self._fit(request)

    def _fit(self, request: RequestState) -> None:
        last = self.positions[request] // BLOCK_SIZE
        if last == len(request.block_ids):
            request.block_ids.append(self.draw.randint(0, 999))
        elif self.draw.random() < 0.1:  # drafts were wrong
            del request.block_ids[last + 1 :]

    def rows(self, launch: Launch | None) -> list[DecodeRow]:
        """All, shuffled; most of those that `launch` computed go on by what it sampled."""
        rows = []
        for request in self.draw.sample(list(self.positions), len(self.positions)):
            position, source = self.positions[request], -1
            last = launch and launch.rows.get(request)
            if launch and last and last.position == position - 1 and self.draw.random() < 0.8:
                source = launch.source(request)
            rows.append(DecodeRow(request, position, source))
        return rows


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), stream=st.sampled_from([InlineStream, LazyStream]))
def test_the_device_holds_what_the_step_says(seed: int, stream: type[DeviceStream]) -> None:
    crowd, device = Crowd(random.Random(seed)), Device(stream())
    launch: Launch | None = None
    for name in range(30):
        crowd.change(name)
        rows = crowd.rows(launch)
        if rows:
            launch = device.run(rows)


def fed_rows(launch: Launch) -> list[DecodeRow]:
    return [
        DecodeRow(request, row.position + 1, launch.source(request))
        for request, row in launch.rows.items()
    ]


def test_nothing_is_sent_while_the_same_requests_go_on() -> None:
    device = Device(InlineStream())
    launch = device.run([DecodeRow(make_request(i, 9, 8), 8 - i) for i in range(4)])
    for _ in range(12):
        rows = fed_rows(launch)
        launch = device.run(random.Random(0).sample(rows, len(rows)))
    assert device.buffers.num_copies == 1


@pytest.mark.parametrize("change", ["id", "source", "position", "block", "request"])
def test_whatever_differs_is_sent(change: str) -> None:
    device = Device(InlineStream())
    request = make_request(3, 12, 4)
    launch = device.run([DecodeRow(request, 6)])
    (row,) = fed_rows(launch)
    if change == "id":
        row = row._replace(source=-1)
    elif change == "source":  # its last token was computed once more, beside the decodes
        row = row._replace(source=row.source + 1)
    elif change == "position":
        row = row._replace(position=8)
    elif change == "block":
        request.block_ids[0] = 5
    else:
        row = row._replace(request=make_request(4, 12, 4))
    device.run([row])
    assert device.buffers.num_copies == 2


def test_of_a_table_only_new_blocks_are_sent() -> None:
    device = Device(InlineStream())
    request, other = make_request(1, 12, 2), make_request(2, 12, 3)
    launch = device.run([DecodeRow(request, 6), DecodeRow(other, 6)])
    request.block_ids += [77, 78]
    device.run(fed_rows(launch))
    fields = device.buffers.device
    assert fields.first_columns[:2].tolist() == [2, -1]
    assert (fields.num_columns[0], fields.blocks[:2].tolist()) == (2, [77, 78])


def test_a_copy_in_flight_is_not_written_over() -> None:
    """Two may be; the third waits for the first. The device reads what was sent at each time."""
    stream, seen = LazyStream(), []
    buffers = make_buffers(stream)
    for count in range(5):
        buffers.host.positions[:] = count
        buffers.send([count] * count)
        stream.run(lambda: seen.append((buffers.device.positions[0].item(),
                                        buffers.device.blocks[:4].tolist())))  # fmt: skip
    assert len(seen) == 3 - 1  # what was queued before the copies that had to be done
    stream.mark()()
    assert [position for position, _ in seen] == list(range(5))
    assert seen[4][1] == [4] * 4


def test_addresses_suit_kernels() -> None:
    buffers = make_buffers(InlineStream())
    base = buffers._device_bytes.data_ptr()
    assert all((field.data_ptr() - base) % 16 == 0 for field in buffers.device)
    assert all(len(field) == len(host) for field, host in
               zip(buffers.device, buffers.host, strict=True))  # fmt: skip


def test_prompts_are_padded_with_rows_and_sequences_of_nobody() -> None:
    stream = InlineStream()
    buffers = make_buffers(stream, max_tokens=16)
    ring = SampledRing(MAX_SEQS, CPU, stream)
    old = [make_request(index, 2, 4) for index in range(6)]
    place_prompts(buffers, [ScheduledRequest(r, 2) for r in old], [packed_row(r) for r in old])
    decoding, prompt = make_request(1, 7, 2), make_request(2, 9, 3)
    decoding.num_computed_tokens, prompt.num_computed_tokens = 6, 4
    items = [ScheduledRequest(decoding, 1), ScheduledRequest(prompt, 3)]
    rows = place_prompts(buffers, items, [packed_row(item.request) for item in items])
    PlainKernels().feed(buffers, ring, 2)
    views = buffers.views(16, MAX_SEQS)
    metadata = views.metadata
    assert views.input_ids[:4].tolist() == [106, 204, 205, 206]
    assert views.positions[:4].tolist() == [6, 4, 5, 6]
    assert metadata.slot_mapping.tolist() == [4_006, 8_004, 8_005, 8_006] + [-1] * 12
    assert metadata.query_start_loc.tolist() == [0, 1, 4, 4, 4, 4, 4]
    assert metadata.seq_lens.tolist() == [7, 7, 0, 0, 0, 0]
    assert metadata.block_tables[:2, :2].tolist() == [[1_000, 1_001], [2_000, 2_001]]
    assert views.logits_indices.tolist() == [0, 3, 0, 0, 0, 0]
    assert views.rows.temperature[2:].tolist() == [0.0] * 4
    assert {(row.row, row.position, row.block_id) for row in rows.values()} == {
        (0, 6, 1_001),
        (1, 6, 2_001),
    }
