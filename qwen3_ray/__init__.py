"""Qwen3 Ray: an exact, tensor-parallel engine for Qwen3 models.

Names load on first use, so that `import qwen3_ray` costs nothing and never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qwen3_ray import _environment as _environment

if TYPE_CHECKING:
    from qwen3_ray.engine.llm import LLM
    from qwen3_ray.engine.outputs import CompletionOutput, Logprob, RequestOutput
    from qwen3_ray.sampling_params import SamplingParams
    from qwen3_ray.structured_outputs import StructuredOutputs

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
]

_HOMES = {
    "LLM": "qwen3_ray.engine.llm",
    "CompletionOutput": "qwen3_ray.engine.outputs",
    "Logprob": "qwen3_ray.engine.outputs",
    "RequestOutput": "qwen3_ray.engine.outputs",
    "SamplingParams": "qwen3_ray.sampling_params",
    "StructuredOutputs": "qwen3_ray.structured_outputs",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
