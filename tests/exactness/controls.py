"""Models that are exact but for one thing: tests of exactness must notice them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from qwen3_ray.layers.embedding import VocabParallelHead
from qwen3_ray.layers.kernels import Kernels
from qwen3_ray.layers.linear import ColumnParallelLinear, DenseMatrix, Matrix, RowParallelLinear
from qwen3_ray.layers.packed import PackedMatrix
from qwen3_ray.model.qwen3 import MLP, DecoderLayer, FeedForward, Qwen3ForCausalLM
from qwen3_ray.model.qwen3_moe import Expert, SparseMLP

Change = Callable[[Matrix], Matrix]


def torch_product(matrix: Matrix) -> DenseMatrix:
    """The same weights, unpacked, for torch's own product: its bits depend on the batch."""
    assert isinstance(matrix, PackedMatrix)
    panels = matrix.panels.view(np.float16) if matrix.is_half else matrix.panels
    weight = torch.from_numpy(panels).float().transpose(1, 2).reshape(-1, panels.shape[1])
    return DenseMatrix(weight[: matrix.out_features, : matrix.in_features].contiguous())


def with_matrices(model: Qwen3ForCausalLM, change: Change) -> Qwen3ForCausalLM:
    """All of the model's matrices are what `change` makes of them, in the order of `matrices`."""
    layers = [_changed_layer(layer, change) for layer in model._layers]
    head = replace(model._head, matrix=change(model._head.matrix))
    return _rebuilt(model, layers, head, model._kernels)


def with_kernels(model: Qwen3ForCausalLM, kernels: Kernels) -> Qwen3ForCausalLM:
    """The same products, with other kernels between them."""
    layers = [
        replace(
            layer,
            attention=replace(layer.attention, kernels=kernels),
            mlp=_with_kernels(layer.mlp, kernels),
        )
        for layer in model._layers
    ]
    return _rebuilt(model, layers, model._head, kernels)


def with_torch_experts(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """Only the products of the experts are torch's own."""

    def change(mlp: FeedForward) -> FeedForward:
        assert isinstance(mlp, SparseMLP)
        return replace(mlp, experts=[Expert(*map(torch_product, expert)) for expert in mlp.experts])

    layers = [replace(layer, mlp=change(layer.mlp)) for layer in model._layers]
    return _rebuilt(model, layers, model._head, model._kernels)


def _rebuilt(
    model: Qwen3ForCausalLM,
    layers: Sequence[DecoderLayer],
    head: VocabParallelHead,
    kernels: Kernels,
) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        model.config,
        model.tp,
        embedding=model._embedding,
        layers=layers,
        final_norm=model._final_norm,
        head=head,
        cos_sin=model._cos_sin,
        kernels=kernels,
        num_bytes_read=model.num_bytes_read,
    )


def _changed_layer(layer: DecoderLayer, change: Change) -> DecoderLayer:
    attention = replace(
        layer.attention,
        qkv_proj=ColumnParallelLinear(change(layer.attention.qkv_proj.matrix)),
        o_proj=_changed_row(layer.attention.o_proj, change),
    )
    return replace(layer, attention=attention, mlp=_changed_mlp(layer.mlp, change))


def _changed_row(linear: RowParallelLinear, change: Change) -> RowParallelLinear:
    return replace(linear, matrix=change(linear.matrix))


def _changed_mlp(mlp: FeedForward, change: Change) -> FeedForward:
    if isinstance(mlp, SparseMLP):
        gate = change(mlp.gate)
        return replace(mlp, gate=gate, experts=[Expert(*map(change, e)) for e in mlp.experts])
    assert isinstance(mlp, MLP)
    gate_up = ColumnParallelLinear(change(mlp.gate_up_proj.matrix))
    return replace(mlp, gate_up_proj=gate_up, down_proj=_changed_row(mlp.down_proj, change))


def _with_kernels(mlp: FeedForward, kernels: Kernels) -> FeedForward:
    assert isinstance(mlp, MLP | SparseMLP)
    return replace(mlp, kernels=kernels)
