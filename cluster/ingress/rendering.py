"""Where answers are put into the client's form: on the event loop, unless there is much to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from cluster.router.generation import Generation
from cluster.router.inference import Chunk

LARGE_ANSWER = 200
"""Logprobs. One takes some 10 us to write, and the event loop has other clients to serve."""

_T = TypeVar("_T")


async def render(work: Callable[[], _T], generation: Generation, chunks: Sequence[Chunk]) -> _T:
    """What `work` makes of pieces of `generation`; in a thread if they hold many logprobs."""
    num_logprobs = 0
    for chunk in chunks:
        num_logprobs += len(chunk.logprobs)
        if chunk.is_first:
            num_logprobs += len(generation.prompt_logprobs)
    if num_logprobs > LARGE_ANSWER:
        return await asyncio.to_thread(work)
    return work()
