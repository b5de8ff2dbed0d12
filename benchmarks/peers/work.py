"""What every contender is given to do, and what a measurement of it is called.

prefill      tokens of one prompt over the time until its first output token
decode B     B prompts started together: output tokens after the first of each, over the time from
             the moment when all have their first one to the end
http C       C clients start together, each streams one request after the other

Prompts are random token ids, new for every call: no prefix is ever shared. All decoding is greedy
and ignores the end-of-text token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Lengths in tokens, numbers of sequences and of clients."""

    prefill_len: int = 512
    prompt_len: int = 128
    output_len: int = 64
    batches: tuple[int, ...] = (1, 8, 16)
    clients: tuple[int, ...] = (1, 8, 16)
    requests_per_client: int = 1
    """In one round."""
    max_model_len: int = 2_048
    first_token_id: int = 1_000
    last_token_id: int = 100_000
    """Prompts are drawn from this range: no special tokens."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured: `prefill`, `decode 8`, `http 16`."""

    kind: str
    num_streams: int = 1

    @property
    def name(self) -> str:
        """Key of its samples."""
        return self.kind if self.kind == "prefill" else f"{self.kind} {self.num_streams}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one contender."""

    contender: str
    case: str
    round: int
    values: dict[str, float]
    """`tokens_per_s`; over HTTP also `ttft_s`, `itl_s` and their `_p99`."""
    foreign_cores: float
    """Cores that processes outside this benchmark used meanwhile."""


@dataclass(slots=True)
class PromptSource:
    """Prompts of random token ids; the same seed gives every contender the same ones."""

    work: Work
    seed: str
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def take(self, count: int, length: int) -> list[list[int]]:
        """[count][length]"""
        low, high = self.work.first_token_id, self.work.last_token_id
        return [[self._random.randint(low, high) for _ in range(length)] for _ in range(count)]


def offline_cases(work: Work) -> list[Case]:
    """In the order in which they are measured."""
    return [Case("prefill"), *(Case("decode", batch) for batch in work.batches)]


def http_cases(work: Work) -> list[Case]:
    """In the order in which they are measured."""
    return [Case("http", clients) for clients in work.clients]
