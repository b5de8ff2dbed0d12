"""A request as it crosses the link, both ways."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cluster.link.sampling_fields import given_params, plain_fields
from protos.v1 import link_pb2 as link
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs


def submit_message(request: GenerateRequest) -> link.Submit:
    """The message of a request whose seed is drawn and whose `max_tokens` is decided.

    `bad_words` do not cross the link: by then they are token ids.
    """
    params = request.params
    sampling = link.Sampling(
        **{name: getattr(params, name) for name in plain_fields(link.Sampling.DESCRIPTOR)},
        logit_bias=params.logit_bias,
        bad_words_token_ids=[link.TokenIds(ids=ids) for ids in params.bad_words_token_ids],
    )
    if params.allowed_token_ids is not None:
        sampling.allowed_token_ids.ids.extend(params.allowed_token_ids)
    if (form := params.structured_outputs) is not None:
        message = link.StructuredOutputs(**{form.kind: getattr(form, form.kind)})
        sampling.structured_outputs.CopyFrom(message)
    return link.Submit(
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        sampling=sampling,
        choice=request.choice,
        output_token_ids=request.output_token_ids,
        priority=request.priority,
        cache_salt=request.cache_salt,
    )


def request_of(submit: link.Submit) -> GenerateRequest:
    """The request that `submit_message` has put into a message.

    Raises:
        RequestError: a sampling parameter is out of its range.
    """
    return GenerateRequest(
        request_id=submit.request_id,
        prompt_token_ids=tuple(submit.prompt_token_ids),
        params=_params(submit.sampling),
        choice=submit.choice,
        output_token_ids=tuple(submit.output_token_ids),
        priority=submit.priority,
        cache_salt=submit.cache_salt,
    )


def _params(sampling: link.Sampling) -> SamplingParams:
    form = None
    for field, value in sampling.structured_outputs.ListFields():  # at most one
        form = _form(field.name, tuple(value) if field.name == "choice" else value)
    return SamplingParams(
        **given_params(sampling),
        bad_words_token_ids=[tuple(word.ids) for word in sampling.bad_words_token_ids],
        structured_outputs=form,
    )


@lru_cache(maxsize=32)  # all answers to one prompt have one, and a large one takes 10 ms to check
def _form(kind: str, value: str | bool | tuple[str, ...]) -> StructuredOutputs:
    given: dict[str, Any] = {kind: value}
    return StructuredOutputs(**given)
