"""What one stream has made so far, and how far its reader is. Pure."""

from __future__ import annotations

from collections.abc import Callable

from cluster.replica.messages import finish_of
from protos.v1 import link_pb2 as link
from qwen3_ray.request import FinishReason
from qwen3_ray.text.output_processor import OutputProcessor


class StreamJournal:
    """Ids of one output, from which its text follows, and a reader's place in it.

    Text is a function of the ids alone, so `rewind` gives a new reader exactly the text that
    the ids from its index on add: it replays them through a fresh `OutputProcessor`.
    """

    def __init__(
        self, request_id: str, new_processor: Callable[[], OutputProcessor | None]
    ) -> None:
        self.request_id = request_id
        self._new_processor = new_processor
        self._processor = new_processor()
        self._token_ids: list[int] = []  # as the engine made them, those after a stop included
        self._engine_finish: FinishReason | None = None
        self._num_kept_tokens = 0
        self._num_read_tokens = 0
        self._unread_text = ""
        self._end = link.StreamDelta()  # how the stream ended; merged into its last delta

    @property
    def num_kept_tokens(self) -> int:
        """Tokens of the output so far."""
        return self._num_kept_tokens

    @property
    def finished(self) -> bool:
        """Whether the output is complete or has failed."""
        return self._end.finish_reason != link.UNFINISHED

    @property
    def has_news(self) -> bool:
        """Whether the reader lacks tokens, text or the end."""
        return (
            self.finished
            or self._num_read_tokens < self._num_kept_tokens
            or bool(self._unread_text)
        )

    def push(self, delta: link.EngineDelta) -> None:
        """Take what one engine step made. Not after the end."""
        num_known = len(self._token_ids)
        self._token_ids.extend(delta.token_ids)
        self._num_kept_tokens = len(self._token_ids)
        if delta.finish_reason in (link.STOP, link.LENGTH):
            self._engine_finish = finish_of(delta.finish_reason)
        if delta.finish_reason:
            self._end.finish_reason = delta.finish_reason
            self._end.error = delta.error
        if delta.HasField("stop_token_id"):
            self._end.stop_token_id = delta.stop_token_id
        if self._processor is None:
            return
        text = self._processor.push(delta.token_ids, self._engine_finish)
        self._unread_text += text.text
        self._num_kept_tokens = num_known + text.num_kept_tokens
        if text.stop_string is not None:
            self._end = link.StreamDelta(finish_reason=link.STOP, stop_string=text.stop_string)

    def lose(self, problem: str) -> None:
        """The engine is gone; the output will not be completed here."""
        self._end = link.StreamDelta(finish_reason=link.LOST, error=problem)

    def take(self) -> link.StreamDelta:
        """What the reader has not had yet."""
        delta = link.StreamDelta(
            request_id=self.request_id,
            from_index=self._num_read_tokens,
            token_ids=self._token_ids[self._num_read_tokens : self._num_kept_tokens],
            text=self._unread_text,
        )
        delta.MergeFrom(self._end)
        self._num_read_tokens = self._num_kept_tokens
        self._unread_text = ""
        return delta

    def rewind(self, from_index: int) -> None:
        """A new reader has `from_index` tokens of the output and the text that came with them.

        Costs O(output). `from_index` is at most `num_kept_tokens`.
        """
        self._num_read_tokens = from_index
        replay = self._new_processor()
        if replay is None:
            return
        replay.push(self._token_ids[:from_index])
        self._unread_text = replay.push(self._token_ids[from_index:], self._engine_finish).text
