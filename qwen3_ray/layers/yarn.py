"""YaRN: rotary embedding stretched over a longer context than the training's. Knows no torch.

Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv
2309.00071), with the details of transformers. It is static: every position of every request is
rotated in the stretched way, however short the request is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """How the rotations are stretched; plain RoPE would have a factor of 1."""

    factor: float
    """How many times the context of the training becomes; at least 1."""
    original_max_position_embeddings: int
    """The context of the training, in tokens."""
    beta_fast: float
    """A frequency that turns this often or more in the original context is left as it is."""
    beta_slow: float
    """One that turns this often or less is divided by `factor`; between the two is a blend."""
    truncate: bool
    """Whether the blend begins and ends at whole indices of frequencies."""
    attention_factor: float
    """Cosines and sines are multiplied by it, so that scores are by its square."""

    @property
    def max_position_embeddings(self) -> int:
        """The stretched context, in tokens."""
        return int(self.original_max_position_embeddings * self.factor)

    def blend_range(self, *, head_dim: int, theta: float) -> tuple[float, float]:
        """Indices, of the `head_dim` / 2 frequencies, at which the blend begins and ends."""
        low = self._index_of(self.beta_fast, head_dim, theta)
        high = self._index_of(self.beta_slow, head_dim, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        return low, high if high != low else high + 0.001  # no division by zero

    def _index_of(self, num_turns: float, head_dim: int, theta: float) -> float:
        """Index of the frequency that turns `num_turns` times in the original context."""
        turn = self.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return head_dim * math.log(turn) / (2 * math.log(theta))


def default_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """0.1 * ln(factor) + 1, the paper's; with both `mscale` values the ratio of two such terms."""
    if mscale is None or mscale_all_dim is None:
        return 0.1 * math.log(factor) + 1.0
    numerator = 0.1 * mscale * math.log(factor) + 1.0
    return numerator / (0.1 * mscale_all_dim * math.log(factor) + 1.0)
