"""Logprobs as they cross the link, both ways."""

from __future__ import annotations

from protos.v1 import link_pb2 as link
from qwen3_ray.request import TokenLogprobs


def logprobs_message(entry: TokenLogprobs) -> link.TokenLogprobs:
    """The message of one token's logprobs; float32 values cross unchanged."""
    return link.TokenLogprobs(
        token_id=entry.token_id,
        logprob=entry.logprob,
        rank=entry.rank,
        top_ids=[token_id for token_id, _ in entry.top],
        top_logprobs=[logprob for _, logprob in entry.top],
    )


def logprobs_of(message: link.TokenLogprobs) -> TokenLogprobs:
    """What `logprobs_message` has put into a message."""
    return TokenLogprobs(
        token_id=message.token_id,
        logprob=message.logprob,
        rank=message.rank,
        top=tuple(zip(message.top_ids, message.top_logprobs, strict=True)),
    )
