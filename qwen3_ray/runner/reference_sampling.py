"""Sampling from its definition, by sorting: the oracle of the CPU kernel, and the CUDA path."""

from __future__ import annotations

import torch

from qwen3_ray.runner.sampling_rows import NUMERICAL_ERROR


def sample_rows(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    *,
    share: torch.Tensor,
) -> torch.Tensor:
    """Sample one id per row; `NUMERICAL_ERROR` for a row with a logit that is not finite.

    Tokens are ordered by logit, the lowest id first among equals. `top_k` keeps that many of the
    first; `top_p` keeps the fewest of what is left whose mass reaches it; of those, the first in
    id order at which the running sum of probabilities exceeds `share` is taken.

    Args:
        logits: [num_rows, num_valid_token_ids], float32.
        temperature: [num_rows], float64; 0 takes the first token in order.
        top_k: [num_rows], int64; 0 or less keeps all.
        top_p: [num_rows], float64.
        share: [num_rows], float64, the random number in [0, 1) of each row.
    """
    finite = torch.isfinite(logits).all(dim=1)
    logits = torch.where(finite[:, None], logits, 0.0)
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    weights = kept_weights(ordered, temperature, top_k, top_p)
    in_id_order = torch.zeros_like(weights).scatter_(1, order, weights)
    running = in_id_order.cumsum(dim=1)
    target = share[:, None] * running[:, -1:]
    chosen = (running <= target).sum(dim=1)
    # Where rounding leaves the target at the total, the last token with a weight is taken.
    last = (in_id_order > 0).int().cumsum(dim=1).argmax(dim=1)
    chosen = torch.minimum(chosen, last)
    chosen = torch.where(temperature == 0, order[:, 0], chosen)
    return torch.where(finite, chosen, NUMERICAL_ERROR)


def kept_weights(
    ordered: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Unnormalised fp64 probabilities of logits in falling order; 0 for what is cut off.

    [num_rows, num_tokens] -> [num_rows, num_tokens].
    """
    scale = torch.where(temperature == 0, 1.0, temperature)[:, None]
    weights = ((ordered.double() - ordered[:, :1].double()) / scale).exp()
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    limit = torch.where(top_k > 0, top_k, ordered.shape[1])
    weights = torch.where(rank < limit[:, None], weights, 0.0)
    running = weights.cumsum(dim=1)
    before = torch.cat((torch.zeros_like(running[:, :1]), running[:, :-1]), dim=1)
    reached = before >= top_p[:, None] * running[:, -1:]
    return torch.where(reached & (top_p < 1.0)[:, None], 0.0, weights)
