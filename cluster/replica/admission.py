"""Which requests a front accepts: the truth about a replica's queue. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.link.requests import request_of
from protos.v1.link_pb2 import Reject, Submit
from qwen3_ray.errors import RequestError
from qwen3_ray.request import GenerateRequest
from qwen3_ray.validation import validate

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
RATE_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a replica accepts and how long it keeps what nobody reads."""

    max_model_len: int
    vocab_size: int
    max_waiting_tokens: int
    max_waiting_requests: int
    orphan_grace_s: float


class PrefillRate:
    """Prompt tokens that the engine computes a second, over the last window in which it did."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0
        self._start: tuple[float, int] | None = None

    def observe(self, now: float, num_prompt_tokens: int) -> None:
        """The engine has computed `num_prompt_tokens` since its start."""
        if self._start is None:
            self._start = (now, num_prompt_tokens)
            return
        start_s, start_tokens = self._start
        if now - start_s >= RATE_WINDOW_S:
            if num_prompt_tokens > start_tokens:
                self._tokens_per_s = (num_prompt_tokens - start_tokens) / (now - start_s)
            self._start = (now, num_prompt_tokens)

    def seconds_for(self, num_tokens: int) -> float:
        """About how long `num_tokens` take, as a time to retry after."""
        if not self._tokens_per_s:
            return MIN_RETRY_AFTER_S
        return min(max(num_tokens / self._tokens_per_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


class Admission:
    """Checks requests and counts those accepted whose first token has not come yet."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rate = PrefillRate()
        self._waiting: dict[str, int] = {}
        self._num_waiting_tokens = 0

    @property
    def num_waiting(self) -> int:
        """Accepted requests without a first token."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those, counted once for all answers to one prompt."""
        return self._num_waiting_tokens

    def admit(self, submit: Submit) -> GenerateRequest | Reject:
        """Count the request in, or say why not."""
        try:
            request = request_of(submit)
            validate(
                request.prompt_token_ids,
                request.params,
                max_model_len=self._limits.max_model_len,
                vocab_size=self._limits.vocab_size,
            )
        except RequestError as error:
            return Reject(
                request_id=submit.request_id,
                reason=Reject.INVALID,
                param=error.param or "",
                message=error.message,
            )
        # The further answers to a prompt find its blocks in the cache.
        num_tokens = 0 if request.choice else len(request.prompt_token_ids)
        if not self._has_room(num_tokens):
            return self._overloaded(submit.request_id)
        self._waiting[submit.request_id] = num_tokens
        self._num_waiting_tokens += num_tokens
        return request

    def leave(self, request_id: str) -> None:
        """The request has its first token, or ended without one."""
        self._num_waiting_tokens -= self._waiting.pop(request_id, 0)

    def observe_rate(self, now: float, num_prompt_tokens: int) -> None:
        """Learn how fast prompts are taken, for honest times to retry after."""
        self._rate.observe(now, num_prompt_tokens)

    def _has_room(self, num_tokens: int) -> bool:
        if not self._waiting:  # a prompt above the bound must not be refused for ever
            return True
        return (
            len(self._waiting) < self._limits.max_waiting_requests
            and self._num_waiting_tokens + num_tokens <= self._limits.max_waiting_tokens
        )

    def _overloaded(self, request_id: str) -> Reject:
        return Reject(
            request_id=request_id,
            reason=Reject.OVERLOADED,
            message=(
                f"{self.num_waiting} requests with {self.num_waiting_tokens} prompt tokens wait "
                f"already; the replica queues at most {self._limits.max_waiting_requests} "
                f"requests and {self._limits.max_waiting_tokens} tokens"
            ),
            retry_after_s=self._rate.seconds_for(self._num_waiting_tokens),
        )
