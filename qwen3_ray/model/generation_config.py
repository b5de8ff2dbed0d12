"""Sampling defaults that a checkpoint brings in generation_config.json. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qwen3_ray.errors import RequestError
from qwen3_ray.model.json_fields import JsonFields, read_json
from qwen3_ray.sampling_params import SamplingParams

FILE_NAME = "generation_config.json"
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def default_sampling(model_dir: Path) -> Mapping[str, float | int]:
    """What `SamplingParams` should be built with where a request leaves these fields open.

    Holds the fields that the file gives; empty without a file. As in vLLM, `do_sample` is ignored:
    a request that wants the likeliest token says temperature 0. Unlike in vLLM, `max_new_tokens`
    is no default: how long answers get stays with the request. End-of-text ids are read by
    `ModelConfig`.

    Raises:
        CheckpointError: the file is damaged, or a value is out of its range.
    """
    file = model_dir / FILE_NAME
    if not file.exists():
        return {}
    fields = JsonFields(file, read_json(file))
    return {
        name: _checked(fields, name) for name in SAMPLING_FIELDS if fields.get(name) is not None
    }


def _checked(fields: JsonFields, name: str) -> float | int:
    value = fields.get(name)
    kind, article = (int, "an integer") if name == "top_k" else (int | float, "a number")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise fields.error(name, f"must be {article}, got {value!r:.80}")
    try:
        SamplingParams(**{name: value})  # type: ignore[arg-type]  # one of SAMPLING_FIELDS
    except RequestError as error:
        raise fields.error(name, error.message) from error
    except OverflowError as error:  # an integer beyond every float
        raise fields.error(name, "must be a finite number") from error
    return value
