"""The same checkpoints in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen3ForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()


def from_files(path: Path, dtype: torch.dtype, device: torch.device) -> Qwen3ForCausalLM:
    """Loaded by transformers itself; in float32 with attention in plain steps."""
    attention = "eager" if dtype == torch.float32 else "sdpa"
    model: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention
    )
    return model.to(device).eval()


def from_tensors(path: Path, device: torch.device) -> Qwen3ForCausalLM:
    """Given bf16 tensors that are on the device already."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file, device=str(device))
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(AutoConfig.from_pretrained(path))
    finally:
        torch.set_default_dtype(previous)
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model.eval()


def logits(model: Qwen3ForCausalLM, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """At every position of each sequence, [num_tokens, vocab_size], float32."""
    found = []
    for ids in sequences:
        inputs = torch.tensor([ids], device=model.device)
        found.append(model(inputs, use_cache=False).logits[0].float())
    return found
