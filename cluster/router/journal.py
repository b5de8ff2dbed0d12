"""What a router remembers of one request: everything needed to say what comes next. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from qwen3_ray.errors import EngineError
from qwen3_ray.request import GenerateRequest, TokenLogprobs, Usage
from qwen3_ray.sampling_params import SamplingParams


@dataclass(slots=True, eq=False, kw_only=True)
class JournalEntry:
    """One request: its prompt, where it runs, and what has arrived of its answers.

    `params.seed` and `params.max_tokens` are set, so the entry alone determines the outputs.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    replica_id: str = ""
    """The replica that runs it; empty before the first one has taken it."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """From the prompt's second token on."""
    outputs: list[list[int]] = field(default_factory=list)
    """Ids of each of the `params.n` answers."""
    num_cached_tokens: int = 0
    """Prompt tokens that the replica had cached before."""

    @property
    def requests(self) -> list[GenerateRequest]:
        """One for each answer. The first one alone scores the prompt, and the others share it."""
        first = GenerateRequest(
            request_id=self.request_id,
            prompt_token_ids=self.prompt_token_ids,
            params=self.params,
            priority=self.priority,
            cache_salt=self.cache_salt,
        )
        if self.params.n == 1:
            return [first]
        rest = replace(self.params, prompt_logprobs=None)
        return [
            replace(
                first,
                request_id=f"{self.request_id}-{choice}",
                params=rest if choice else self.params,
                choice=choice,
            )
            for choice in range(self.params.n)
        ]

    def begin(self, replica_id: str) -> None:
        """A replica gets the request. Nothing of what another one has made was used."""
        self.replica_id = replica_id
        self.outputs = [[] for _ in range(self.params.n)]
        self.prompt_logprobs = []
        self.num_cached_tokens = 0

    def append(self, choice: int, from_index: int, token_ids: Sequence[int]) -> None:
        """Take over output ids, the first of which is number `from_index` of the output.

        Raises:
            EngineError: ids are missing before them or come twice.
        """
        output = self.outputs[choice]
        if token_ids:
            self._expect("output tokens", from_index, len(output))
        output.extend(token_ids)

    def append_prompt_logprobs(self, from_index: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """Take over logprobs of the prompt, the first of which is of token `from_index`.

        Raises:
            EngineError: some are missing before them or come twice.
        """
        if logprobs:
            self._expect("prompt logprobs", from_index, 1 + len(self.prompt_logprobs))
        self.prompt_logprobs.extend(logprobs)

    @property
    def usage(self) -> Usage:
        """Tokens taken so far."""
        return Usage(
            prompt_tokens=len(self.prompt_token_ids),
            completion_tokens=sum(map(len, self.outputs)),
            cached_tokens=self.num_cached_tokens,
        )

    def _expect(self, what: str, from_index: int, expected: int) -> None:
        if from_index != expected:
            raise EngineError(
                f"replica {self.replica_id} sent {what} from number {from_index} on, "
                f"expected number {expected}"
            )
