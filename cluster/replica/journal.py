"""What one stream has made so far, and how far its reader is. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cluster.link.protocol import FRAME_TOKENS
from cluster.replica.messages import finish_of
from protos.v1 import link_pb2 as link
from qwen3_ray.request import FinishReason
from qwen3_ray.text.output_processor import OutputProcessor

PIECE_TOKENS = 256
"""An output that is read anew is cut into pieces of this many tokens."""


class StreamJournal:
    """Ids of one output, from which its text follows, and a reader's place in it.

    Text is a function of the ids alone, so `rewind` gives a new reader exactly the text that
    the ids from its index on add: it replays them through a fresh `OutputProcessor`. Logprobs
    do not follow from the ids; they are kept beside them, those of the prompt apart.
    """

    def __init__(
        self, request_id: str, new_processor: Callable[[], OutputProcessor | None]
    ) -> None:
        self.request_id = request_id
        self._new_processor = new_processor
        self._processor = new_processor()
        self._token_ids: list[int] = []  # as the engine made them, those after a stop included
        self._logprobs: list[link.TokenLogprobs] = []  # of each of them, if wanted
        self._prompt_logprobs: list[link.TokenLogprobs] = []  # from the second token on, if wanted
        self._num_cached_tokens = 0
        self._engine_finish: FinishReason | None = None
        self._end: link.StreamDelta | None = None  # how it ended; merged into its last delta
        self._num_kept_tokens = 0
        # The reader's place:
        self._num_read_tokens = 0
        self._num_read_prompt_logprobs = 0
        self._unread: deque[tuple[int, str]] = deque()  # numbers of tokens, and their text
        self._end_is_read = False

    @property
    def num_kept_tokens(self) -> int:
        """Tokens of the output so far."""
        return self._num_kept_tokens

    @property
    def num_prompt_logprobs(self) -> int:
        """Logprobs of the prompt's tokens so far."""
        return len(self._prompt_logprobs)

    @property
    def finished(self) -> bool:
        """Whether the output is complete or has failed."""
        return self._end is not None

    @property
    def has_news(self) -> bool:
        """Whether the reader lacks tokens, text, logprobs or the end."""
        return self._lacks_content or (self.finished and not self._end_is_read)

    @property
    def _lacks_content(self) -> bool:
        return bool(self._unread) or self._num_read_prompt_logprobs < len(self._prompt_logprobs)

    def push(self, delta: link.EngineDelta) -> None:
        """Take what one engine step made. Not after the end."""
        token_ids = delta.token_ids
        self._token_ids.extend(token_ids)
        if delta.logprobs:
            self._logprobs.extend(delta.logprobs)
        if delta.prompt_logprobs:
            self._prompt_logprobs.extend(delta.prompt_logprobs)
        if delta.HasField("num_cached_tokens"):
            self._num_cached_tokens = delta.num_cached_tokens
        if delta.finish_reason:
            self._push_end(delta)
        if self._processor is None:
            self._add_output(len(token_ids), "")
            return
        added = self._processor.push(token_ids, self._engine_finish)
        if added.stop_string is not None:
            self._end = link.StreamDelta(finish_reason=link.STOP, stop_string=added.stop_string)
        self._add_output(added.num_kept_tokens, added.text)

    def lose(self, problem: str) -> None:
        """The engine is gone; the output will not be completed here."""
        self._end = link.StreamDelta(finish_reason=link.LOST, error=problem)

    def take(self, max_tokens: int = FRAME_TOKENS) -> link.StreamDelta:
        """What the reader has not had yet, or the first of it, while `has_news` stays true.

        Not much more than `max_tokens` tokens and logprobs of the prompt together; the prompt's
        come before all tokens, or with the first ones.
        """
        delta = link.StreamDelta(
            request_id=self.request_id,
            from_index=self._num_read_tokens,
            num_cached_tokens=self._num_cached_tokens,
        )
        if self._num_read_prompt_logprobs < len(self._prompt_logprobs):
            max_tokens -= self._take_prompt_logprobs(delta, max_tokens)
        if max_tokens > 0:
            self._take_output(delta, max_tokens)
        if self._end is not None and not self._lacks_content:
            delta.MergeFrom(self._end)
            self._end_is_read = True
        return delta

    def rewind(self, from_index: int, num_prompt_logprobs: int = 0) -> None:
        """A new reader has `from_index` tokens of the output and the text that came with them.

        It also has that many of the prompt's logprobs. Costs O(output). Neither number is above
        what there is.
        """
        self._num_read_tokens = from_index
        self._num_read_prompt_logprobs = num_prompt_logprobs
        self._end_is_read = False
        self._unread.clear()
        replay = self._new_processor()
        if replay is None:
            for start in range(from_index, self._num_kept_tokens, PIECE_TOKENS):
                self._add_unread(min(PIECE_TOKENS, self._num_kept_tokens - start), "")
            return
        replay.push(self._token_ids[:from_index])
        for start in range(from_index, max(len(self._token_ids), from_index + 1), PIECE_TOKENS):
            stop = start + PIECE_TOKENS
            finish = self._engine_finish if stop >= len(self._token_ids) else None
            added = replay.push(self._token_ids[start:stop], finish)
            self._add_unread(added.num_kept_tokens, added.text)

    def _push_end(self, delta: link.EngineDelta) -> None:
        if delta.finish_reason in (link.STOP, link.LENGTH):
            self._engine_finish = finish_of(delta.finish_reason)
        self._end = link.StreamDelta(
            finish_reason=delta.finish_reason,
            error=delta.error,
            error_param=delta.error_param,
            stop_token_id=delta.stop_token_id if delta.HasField("stop_token_id") else None,
        )

    def _add_output(self, num_tokens: int, text: str) -> None:
        self._num_kept_tokens += num_tokens
        self._add_unread(num_tokens, text)

    def _add_unread(self, num_tokens: int, text: str) -> None:
        if num_tokens or text:
            self._unread.append((num_tokens, text))

    def _take_prompt_logprobs(self, delta: link.StreamDelta, max_entries: int) -> int:
        """Put the next of them into `delta`; returns how many."""
        start = self._num_read_prompt_logprobs
        entries = self._prompt_logprobs[start : start + max_entries]
        delta.prompt_logprobs.extend(entries)
        delta.prompt_logprobs_from = start + 1
        self._num_read_prompt_logprobs += len(entries)
        return len(entries)

    def _take_output(self, delta: link.StreamDelta, max_tokens: int) -> None:
        """Put the next pieces of the output into `delta`, until that many tokens are reached."""
        first, texts = self._num_read_tokens, []
        while self._unread and self._num_read_tokens < first + max_tokens:
            num_tokens, text = self._unread.popleft()
            self._num_read_tokens += num_tokens
            texts.append(text)
        delta.token_ids.extend(self._token_ids[first : self._num_read_tokens])
        delta.text = "".join(texts)
        if self._logprobs:
            delta.logprobs.extend(self._logprobs[first : self._num_read_tokens])
