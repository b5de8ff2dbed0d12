"""What config.json says of the rotary embedding, in both key styles. Knows no torch."""

from __future__ import annotations

from qwen3_ray.layers.yarn import YarnScaling, default_attention_factor
from qwen3_ray.model.json_fields import JsonFields

_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # the paper's, for files that name none


def read_rope(fields: JsonFields) -> tuple[float, YarnScaling | None]:
    """Theta, and the scaling or None for plain RoPE.

    `rope_parameters` (new) holds both, or `rope_scaling` (old) the scaling beside `rope_theta`.
    A file may have both objects, as one does whose owner added `rope_scaling` by hand; what they
    say must not differ.

    Raises:
        CheckpointError: a field is missing or cannot be computed; names it.
    """
    ropes = [
        rope
        for name in ("rope_parameters", "rope_scaling")
        if (rope := fields.child(name)) is not None
    ]
    scalings = {scaling for rope in ropes if (scaling := _read_scaling(rope)) is not None}
    if len(scalings) > 1:
        raise fields.error("rope_scaling", "and rope_parameters say different things")
    thetas = [source for source in (*ropes, fields) if source.get("rope_theta") is not None]
    theta = (thetas or [fields])[0].positive_float("rope_theta")
    scaling = scalings.pop() if scalings else None
    if scaling is not None and theta <= 1:
        raise fields.error("rope_theta", f"must be above 1 for yarn, got {theta}")
    return theta, scaling


def _read_scaling(rope: JsonFields) -> YarnScaling | None:
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type == "default":
        return None
    if rope_type != "yarn":
        raise rope.error(
            "rope_type",
            f"is {rope_type!r:.80}: only plain RoPE (default) and yarn are supported",
        )
    return _read_yarn(rope)


def _read_yarn(rope: JsonFields) -> YarnScaling:
    factor = rope.positive_float("factor")
    if factor < 1:
        raise rope.error("factor", f"must be at least 1, got {factor}")
    beta_fast = rope.optional_positive_float("beta_fast") or _BETA_FAST
    beta_slow = rope.optional_positive_float("beta_slow") or _BETA_SLOW
    if beta_fast < beta_slow:
        raise rope.error("beta_fast", f"= {beta_fast} must not be below beta_slow = {beta_slow}")
    if rope.optional_positive_float("partial_rotary_factor") not in {None, 1.0}:
        raise rope.error("partial_rotary_factor", "must be 1: whole heads are rotated")
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=rope.positive_int("original_max_position_embeddings"),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=rope.get("truncate") is None or rope.boolean("truncate"),
        attention_factor=rope.optional_positive_float("attention_factor")
        or default_attention_factor(
            factor,
            rope.optional_positive_float("mscale"),
            rope.optional_positive_float("mscale_all_dim"),
        ),
    )
