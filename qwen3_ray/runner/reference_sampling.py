"""Sampling from its definition, by sorting: the oracle of the CPU kernel, and the CUDA path.

`sampling_rows` tells what a row is and in which order its parameters take effect.
"""

from __future__ import annotations

import numpy as np
import torch

from qwen3_ray.runner import philox
from qwen3_ray.runner.sampling_rows import (
    NOTHING_ALLOWED,
    NUMERICAL_ERROR,
    SAMPLE,
    SKIP,
    Int32s,
    Int64s,
    Outcome,
    Records,
    SamplingRows,
)

_LOWEST = torch.finfo(torch.float32).min
_WORD_BITS = 32


def sample(logits: torch.Tensor, batch: SamplingRows) -> Outcome:
    """Sample or score one id for each row, with the logprobs that it wants.

    Args:
        logits: [num_rows, num_valid_token_ids], float32.
        batch: of as many rows.
    """
    finite = torch.isfinite(logits).all(dim=1)
    logits = torch.where(finite[:, None], logits, 0.0)
    given = _column(batch.rows, "token_id", logits)
    sampled = _choose(edit(logits, batch), batch.rows)
    ids = torch.where(given == SAMPLE, sampled, given)
    ids = torch.where(finite, ids, NUMERICAL_ERROR)
    ids = torch.where(given == SKIP, NOTHING_ALLOWED, ids)
    if not (batch.rows["num_top"] >= 0).any():
        return Outcome.empty(len(ids), 0)._replace(token_ids=ids.cpu().numpy())
    return _with_logprobs(logits, ids, batch.max_num_top)


def edit(logits: torch.Tensor, batch: SamplingRows) -> torch.Tensor:
    """Logits after masks, bans, biases and penalties; what is banned is minus infinity.

    [num_rows, num_tokens], float32 -> the same. All else stays finite.
    """
    edited = logits.clone()
    rows, num_tokens = batch.rows, logits.shape[1]
    (masked,) = np.nonzero(rows["mask"] >= 0)
    allowed = _unpack(batch.masks[rows["mask"][masked]], logits)
    edited[masked] = torch.where(allowed, edited[masked], -torch.inf)
    row, index = _entries(rows, "bans", batch.bans, num_tokens)
    edited[_at(row, batch.bans[index], logits)] = -torch.inf
    row, index = _entries(rows, "biases", batch.biases["token_id"], num_tokens)
    place = _at(row, batch.biases["token_id"][index], logits)
    bias = torch.from_numpy(batch.biases["bias"][index]).to(logits.device)
    edited[place] = _clamp(edited[place].double() + bias)
    row, index = _entries(rows, "seen", batch.seen["token_id"], num_tokens)
    place = _at(row, batch.seen["token_id"][index], logits)
    edited[place] = _penalise(edited[place].double(), rows[row], batch.seen[index])
    return edited


def _penalise(logits: torch.Tensor, rows: Records, seen: Records) -> torch.Tensor:
    """[num_entries] each: `seen` tokens, their logits, and the rows that they are in."""
    count = _column(seen, "num_in_output", logits)
    in_prompt = _column(seen, "in_prompt", logits)
    factor = _column(rows, "repetition", logits)
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where((count > 0) | (in_prompt > 0), repeated, logits)
    logits = logits - _column(rows, "frequency", logits) * count
    return _clamp(logits - _column(rows, "presence", logits) * (count > 0))


def _clamp(logits: torch.Tensor) -> torch.Tensor:
    """To float32 and its range, but for what is banned."""
    return torch.where(logits == -torch.inf, logits, logits.clamp(_LOWEST, -_LOWEST)).float()


def _choose(logits: torch.Tensor, rows: Records) -> torch.Tensor:
    """Sample from edited logits; ids [num_rows], `NOTHING_ALLOWED` for a row that is all banned.

    Tokens are ordered by logit, the lowest id first among equals. `min_p` keeps those within
    `max_gap` of the largest, `top_k` that many of the first, `top_p` the fewest of what is left
    whose mass reaches it; of those, the first in id order at which the running sum of
    probabilities exceeds the row's random number is taken.
    """
    any_allowed = (logits > -torch.inf).any(dim=1)
    logits = torch.where(any_allowed[:, None], logits, 0.0)
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    weights = kept_weights(ordered, rows)
    in_id_order = torch.zeros_like(weights).scatter_(1, order, weights)
    running = in_id_order.cumsum(dim=1)
    share = torch.tensor([_share(row) for row in rows], dtype=torch.float64, device=logits.device)
    target = share[:, None] * running[:, -1:]
    chosen = (running <= target).sum(dim=1)
    # Where rounding leaves the target at the total, the last token with a weight is taken.
    last = (in_id_order > 0).int().cumsum(dim=1).argmax(dim=1)
    chosen = torch.minimum(chosen, last)
    chosen = torch.where(_column(rows, "temperature", logits) == 0, order[:, 0], chosen)
    return torch.where(any_allowed, chosen, NOTHING_ALLOWED)


def _share(row: np.void) -> float:
    return philox.uniform(int(row["seed"]), int(row["position"]), int(row["choice"]))


def kept_weights(ordered: torch.Tensor, rows: Records) -> torch.Tensor:
    """Unnormalised fp64 probabilities of logits in falling order; 0 for what is cut off.

    [num_rows, num_tokens] -> [num_rows, num_tokens].
    """
    temperature, max_gap, top_k, top_p = (
        _column(rows, name, ordered)[:, None]
        for name in ("temperature", "max_gap", "top_k", "top_p")
    )
    logits = ordered.double()
    largest = logits[:, :1]
    weights = ((logits - largest) / torch.where(temperature == 0, 1.0, temperature)).exp()
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    kept = (logits >= largest - max_gap) & ((top_k <= 0) | (rank < top_k))
    weights = torch.where(kept, weights, 0.0)
    running = weights.cumsum(dim=1)
    before = torch.cat((torch.zeros_like(running[:, :1]), running[:, :-1]), dim=1)
    reached = before >= top_p * running[:, -1:]
    return torch.where(reached & (top_p < 1.0), 0.0, weights)


def _with_logprobs(logits: torch.Tensor, ids: torch.Tensor, num_top: int) -> Outcome:
    """What `Outcome` holds for the model's own `logits` [num_rows, num_tokens] and `ids`."""
    num_tokens = logits.shape[1]
    logprobs = logits.double().log_softmax(dim=1).clamp(min=_LOWEST).float()
    order = logits.sort(dim=1, descending=True, stable=True).indices
    is_known = (ids >= 0) & (ids < num_tokens)
    known = torch.where(is_known, ids, 0)[:, None]
    rank = 1 + (order == known).int().argmax(dim=1)
    logprob = logprobs.gather(1, known)[:, 0]
    top_ids = order[:, :num_top]
    return Outcome(
        token_ids=ids.cpu().numpy(),
        logprobs=torch.where(is_known, logprob, _LOWEST).cpu().numpy(),
        ranks=torch.where(is_known, rank, num_tokens + 1).cpu().numpy(),
        top_ids=top_ids.cpu().numpy(),
        top_logprobs=logprobs.gather(1, top_ids).cpu().numpy(),
    )


def _column(records: Records, name: str, like: torch.Tensor) -> torch.Tensor:
    """One field of all records, on the device of `like`."""
    return torch.from_numpy(records[name].copy()).to(like.device)


def _unpack(masks: Int32s, logits: torch.Tensor) -> torch.Tensor:
    """[num_masks, num_words] of bits -> [num_masks, num_tokens] of truth."""
    words = torch.from_numpy(masks).to(logits.device)
    bits = words[:, :, None] >> torch.arange(_WORD_BITS, device=logits.device) & 1
    return bits.flatten(1)[:, : logits.shape[1]] == 1


def _entries(rows: Records, name: str, token_ids: Int64s, num_tokens: int) -> tuple[Int64s, Int64s]:
    """Row and index of all entries of the rows' shares `name`, less those beyond the tokens."""
    starts, stops = rows[f"{name}_start"], rows[f"{name}_stop"]
    row = np.repeat(np.arange(len(rows)), stops - starts)
    index = np.concatenate([np.arange(*span) for span in zip(starts, stops, strict=True)])
    index = index.astype(np.int64)
    known = token_ids[index] < num_tokens
    return row[known], index[known]


def _at(row: Int64s, token_ids: Int64s, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of single logits."""
    return torch.from_numpy(row).to(like.device), torch.from_numpy(token_ids).to(like.device)
