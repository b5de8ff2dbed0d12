"""What config.json says of a mixture of experts. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3_ray.model.json_fields import JsonFields


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """Experts of a model's sparse layers; every field was read from its file."""

    num_experts: int
    """Of each sparse layer."""
    num_experts_per_tok: int
    moe_intermediate_size: int
    """Of one expert."""
    norm_topk_prob: bool
    """Whether the weights of a token's experts are divided by their sum."""
    decoder_sparse_step: int
    mlp_only_layers: frozenset[int]

    def is_sparse(self, layer: int) -> bool:
        """Whether layer number `layer`, from 0 on, has experts; the others have a dense MLP."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


def read_moe(fields: JsonFields) -> MoEConfig:
    """Read the fields of a Qwen3MoeForCausalLM; none has a default, transformers' are no model's.

    Raises:
        CheckpointError: a field is missing or has a value that cannot be computed; names it.
    """
    num_experts = _num_experts(fields)
    num_experts_per_tok = fields.positive_int("num_experts_per_tok")
    if num_experts_per_tok > num_experts:
        raise fields.error(
            "num_experts_per_tok", f"= {num_experts_per_tok} exceeds num_experts = {num_experts}"
        )
    return MoEConfig(
        num_experts=num_experts,
        num_experts_per_tok=num_experts_per_tok,
        moe_intermediate_size=fields.positive_int("moe_intermediate_size"),
        norm_topk_prob=fields.boolean("norm_topk_prob"),
        decoder_sparse_step=fields.positive_int("decoder_sparse_step"),
        mlp_only_layers=_mlp_only_layers(fields),
    )


def _num_experts(fields: JsonFields) -> int:
    """`num_experts` in the official files, `num_local_experts` as transformers 5 writes it."""
    names = [name for name in ("num_experts", "num_local_experts") if fields.get(name) is not None]
    if not names:
        raise fields.error("num_experts", "(or num_local_experts) is missing")
    values = {fields.positive_int(name) for name in names}
    if len(values) > 1:
        raise fields.error("num_experts", "and num_local_experts say different things")
    return values.pop()


def _mlp_only_layers(fields: JsonFields) -> frozenset[int]:
    value = fields.required("mlp_only_layers")
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise fields.error("mlp_only_layers", f"must be a list of layers, got {value!r:.80}")
    return frozenset(value)
