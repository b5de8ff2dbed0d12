"""Sampling parameters in messages, the public one and the link's.

The .proto files are the one table of their names: what has a name of `SamplingParams` there is
that parameter.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor

from protos.v1 import generate_pb2, link_pb2
from qwen3_ray.sampling_params import SamplingParams


@cache
def plain_fields(descriptor: Descriptor) -> dict[str, bool]:
    """Parameters of a message that are numbers, texts or lists of them; and which may be unset."""
    return {
        field.name: field.has_presence
        for field in descriptor.fields
        if field.message_type is None and field.name in SamplingParams.__dataclass_fields__
    }


def given_params(message: generate_pb2.SamplingParams | link_pb2.Sampling) -> dict[str, Any]:
    """Arguments of `SamplingParams` that are set in a message; not the form of the output."""
    given = {
        name: getattr(message, name)
        for name, is_optional in plain_fields(message.DESCRIPTOR).items()
        if not is_optional or message.HasField(name)
    }
    given["logit_bias"] = dict(message.logit_bias)
    if message.HasField("allowed_token_ids"):
        given["allowed_token_ids"] = tuple(message.allowed_token_ids.ids)
    return given
