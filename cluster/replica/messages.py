"""The engine's values to the messages that carry them between front and rank 0, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.link.logprobs import logprobs_message
from protos.v1 import link_pb2 as link
from qwen3_ray.request import FinishReason, TokenDelta

if TYPE_CHECKING:  # the engine loads torch, the front never does
    from qwen3_ray.engine.stats import EngineInfo, EngineStats

_TO_WIRE: dict[FinishReason | None, link.FinishReason] = {
    None: link.UNFINISHED,
    FinishReason.STOP: link.STOP,
    FinishReason.LENGTH: link.LENGTH,
    FinishReason.ABORT: link.ABORT,
    FinishReason.ERROR: link.ERROR,
}
_FROM_WIRE = {value: key for key, value in _TO_WIRE.items()}
_FIRST_RARE = TokenDelta._fields.index("logprobs")
_NOTHING_RARE = TokenDelta(request_id="")[_FIRST_RARE:]


def finish_of(reason: link.FinishReason) -> FinishReason | None:
    """The engine's finish reason; None for an unfinished output."""
    return _FROM_WIRE[reason]


def step_event(deltas: Sequence[TokenDelta], stats: EngineStats) -> link.EngineEvent:
    """One step of the engine."""
    event = link.EngineEvent(
        stats=link.EngineStats(
            num_waiting_tokens=stats.num_waiting_tokens,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_cache_usage=stats.kv_cache_usage,
            num_steps=stats.num_steps,
            num_prompt_tokens=stats.num_prompt_tokens,
            num_generated_tokens=stats.num_generated_tokens,
            num_preemptions=stats.num_preemptions,
            num_prefix_queries=stats.num_prefix_queries,
            num_prefix_hits=stats.num_prefix_hits,
            num_draft_tokens=stats.num_draft_tokens,
            num_accepted_tokens=stats.num_accepted_tokens,
        ),
    )
    for delta in deltas:
        message = event.deltas.add(request_id=delta.request_id, token_ids=delta.token_ids)
        if delta[_FIRST_RARE:] != _NOTHING_RARE:  # an empty field costs time, too
            _add_rare(message, delta)
    return event


def _add_rare(message: link.EngineDelta, delta: TokenDelta) -> None:
    """What most deltas of a running stream do not have."""
    message.MergeFrom(
        link.EngineDelta(
            finish_reason=_TO_WIRE[delta.finish_reason],
            stop_token_id=delta.stop_reason if isinstance(delta.stop_reason, int) else None,
            error=delta.error,
            error_param=delta.error_param,
            logprobs=map(logprobs_message, delta.logprobs),
            prompt_logprobs=map(logprobs_message, delta.prompt_logprobs),
            num_cached_tokens=delta.num_cached_tokens,
        )
    )


def ready_event(info: EngineInfo) -> link.EngineEvent:
    """The engine is loaded and warm."""
    return link.EngineEvent(
        ready=link.EngineReady(
            model=info.model_name,
            numerics_fingerprint=info.numerics_fingerprint,
            exact=info.exact,
            block_size=info.block_size,
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            tensor_parallel_size=info.tensor_parallel_size,
        )
    )
