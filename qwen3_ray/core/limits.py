"""How long a prompt may be."""

from __future__ import annotations

from qwen3_ray.errors import PromptTooLongError, RequestError


def check_prompt_len(prompt_len: int, *, max_model_len: int, kv_capacity: int) -> None:
    """Check that a prompt of `prompt_len` tokens can be computed and followed by one token.

    Raises:
        PromptTooLongError: with one output token it exceeds the context or the KV cache.
        RequestError: it is empty.
    """
    if prompt_len == 0:
        raise RequestError("prompt", "must hold at least one token")
    if prompt_len >= max_model_len:
        raise PromptTooLongError(
            "prompt",
            f"has {prompt_len} tokens, at most {max_model_len - 1} fit the context of "
            f"{max_model_len} with one output token",
        )
    if prompt_len >= kv_capacity:
        raise PromptTooLongError(
            "prompt",
            f"has {prompt_len} tokens, at most {kv_capacity - 1} fit the KV cache of "
            f"this engine with one output token",
        )
