"""Sampling defaults that a checkpoint brings in generation_config.json. Knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, cast

from qwen3_ray.errors import RequestError
from qwen3_ray.model.json_fields import JsonFields, read_json
from qwen3_ray.sampling_params import SamplingParams

FILE_NAME = "generation_config.json"


class SamplingDefaults(TypedDict, total=False):
    """The parameters of `SamplingParams` for which checkpoints have defaults."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


def default_sampling(model_dir: Path) -> SamplingDefaults:
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
    names = [name for name in SamplingDefaults.__annotations__ if fields.get(name) is not None]
    return cast(SamplingDefaults, {name: _checked(fields, name) for name in names})


def _checked(fields: JsonFields, name: str) -> float | int:
    value = fields.get(name)
    kind, article = (int, "an integer") if name == "top_k" else (int | float, "a number")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise fields.error(name, f"must be {article}, got {value!r:.80}")
    try:
        SamplingParams(**{name: value})  # type: ignore[arg-type]  # one of SamplingDefaults
    except RequestError as error:
        raise fields.error(name, error.message) from error
    except OverflowError as error:  # an integer beyond every float
        raise fields.error(name, "must be a finite number") from error
    return value
