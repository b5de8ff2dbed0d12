"""A stream table under test: what goes in and what comes out of it."""

from collections.abc import Sequence

from cluster.replica.admission import Limits
from cluster.replica.streams import StreamTable
from protos.v1 import link_pb2 as link
from qwen3_ray.text.output_processor import OutputProcessor

GRACE_S = 10.0
ROUTER, OTHER = 1, 2


def make_table(**changes: int) -> StreamTable:
    limits = {
        "max_model_len": 100,
        "vocab_size": 256,
        "max_waiting_tokens": 50,
        "max_waiting_requests": 3,
        **changes,
    }
    return StreamTable(
        Limits(**limits, orphan_grace_s=GRACE_S),
        lambda params: OutputProcessor(lambda id_: bytes([id_]), params.stop_strings),
    )


def make_submit(
    request_id: str, prompt: Sequence[int] = (1, 2), stop: Sequence[str] = ()
) -> link.Submit:
    sampling = link.Sampling(temperature=0.0, top_p=1.0, max_tokens=8, stop=stop)
    return link.Submit(request_id=request_id, prompt_token_ids=prompt, sampling=sampling)


def accept(table: StreamTable, request_id: str, stop: Sequence[str] = ()) -> str:
    """Submit, and give the id under which the engine knows the stream."""
    table.submit(ROUTER, make_submit(request_id, stop=stop))
    command = table.take_command()
    assert command is not None
    (submit,) = command.submit
    return submit.request_id


def step(table: StreamTable, *deltas: link.EngineDelta, now: float = 0.0) -> None:
    table.on_step(link.EngineEvent(deltas=deltas, stats=link.EngineStats(num_steps=1)), now)


def delta(engine_id: str, ids: bytes = b"", finish: int = link.UNFINISHED) -> link.EngineDelta:
    return link.EngineDelta(request_id=engine_id, token_ids=ids, finish_reason=finish)


def aborted(table: StreamTable) -> list[str]:
    command = table.take_command()
    return [] if command is None else list(command.abort)


def rejects(table: StreamTable, connection: int = ROUTER) -> list[tuple[str, int]]:
    frame = table.take(connection)
    return [(reject.request_id, reject.reason) for reject in frame.rejects]
