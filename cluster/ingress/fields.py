"""Request fields of other servers' completions: those we refuse and those we may ignore."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from qwen3_ray.errors import RequestError

# Fields of OpenAI, vLLM and SGLang that we know and do not support, each with the values besides
# null that change nothing. Any other value is refused: to ignore it would change the answer.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "logprob_token_ids": (),
    "length_penalty": (1,),
    "spaces_between_special_tokens": (True,),
    "add_special_tokens": (True,),
    "stream_interval": (1,),
    "stop_regex": (),
    "guided_whitespace_pattern": (),
    "return_token_offsets": (False,),
    "return_hidden_states": (False,),
    "thinking_token_budget": (-1,),
    "repetition_detection": (),
    "use_beam_search": (False,),
    "watermarking": (False,),
    "prompt_embeds": (),
    "mm_payload": (),
    "routed_experts_prompt_start": (),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": (),
    "lora_path": (),
    "custom_params": (),
}
# Known, and free to ignore: they change no answer.
_HARMLESS = frozenset({"user", "session_id", "request_id", "rid"})

_MAX_NAMES = 256  # clients choose the names; what we keep of them is bounded
_MAX_NAME_LENGTH = 64

_logger = logging.getLogger(__name__)


def check_extra_fields(extra: Mapping[str, object]) -> tuple[str, ...]:
    """Look at the fields that a request has besides ours; return the unknown ones.

    Raises:
        RequestError: a field that we know, do not support and that asks for something.
    """
    for name in extra.keys() & _UNSUPPORTED.keys():
        if not _changes_nothing(extra[name], _UNSUPPORTED[name]):
            raise RequestError(name, f"is not supported, got {extra[name]!r:.80}")
    return tuple(extra.keys() - _UNSUPPORTED.keys() - _HARMLESS)


def _changes_nothing(value: object, neutral: tuple[object, ...]) -> bool:
    # True == 1 in Python; a boolean is not a number here.
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )


class UnknownFields:
    """Counts the fields that were ignored, and logs each name the first time it comes."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def note(self, names: Iterable[str]) -> None:
        for name in names:
            key = name[:_MAX_NAME_LENGTH]
            if key not in self.counts:
                if len(self.counts) >= _MAX_NAMES:
                    continue
                _logger.warning("ignoring unknown request field %r", key)
            self.counts[key] += 1
