"""A request as it crosses the link, both ways: the one place that names its fields on the wire."""

from __future__ import annotations

from protos.v1 import link_pb2 as link
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.structured_outputs import StructuredOutputs

_PLAIN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "max_tokens",
    "min_tokens",
    "n",
    "seed",
    "stop",
    "include_stop_str_in_output",
    "stop_token_ids",
    "ignore_eos",
    "logprobs",
    "prompt_logprobs",
    "skip_special_tokens",
)
"""Parameters that are the same on both sides; None is an unset field."""
_OPTIONAL = ("repetition_penalty", "n", "logprobs", "prompt_logprobs", "skip_special_tokens")
"""Those of them whose default is not 0."""


def submit_message(request: GenerateRequest) -> link.Submit:
    """The message of a request whose seed is drawn and whose `max_tokens` is decided.

    `bad_words` do not cross the link: by then they are token ids.
    """
    params = request.params
    sampling = link.Sampling(
        **{name: getattr(params, name) for name in _PLAIN},
        logit_bias=params.logit_bias,
        bad_words_token_ids=[link.TokenIds(ids=ids) for ids in params.bad_words_token_ids],
    )
    if params.allowed_token_ids is not None:
        sampling.allowed_token_ids.ids.extend(params.allowed_token_ids)
    if params.structured_outputs is not None:
        sampling.structured_outputs.CopyFrom(_form_message(params.structured_outputs))
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
    given = {
        name: getattr(sampling, name)
        for name in _PLAIN
        if name not in _OPTIONAL or sampling.HasField(name)
    }
    if sampling.HasField("allowed_token_ids"):
        given["allowed_token_ids"] = tuple(sampling.allowed_token_ids.ids)
    if sampling.HasField("structured_outputs"):
        given["structured_outputs"] = _form(sampling.structured_outputs)
    return SamplingParams(
        **given,
        logit_bias=dict(sampling.logit_bias),
        bad_words_token_ids=[tuple(word.ids) for word in sampling.bad_words_token_ids],
    )


def _form_message(form: StructuredOutputs) -> link.StructuredOutputs:
    message = link.StructuredOutputs(json=form.schema, regex=form.regex, grammar=form.grammar)
    if form.choice is not None:
        message.choice.texts.extend(form.choice)
    if form.json_object:
        message.json_object = True
    return message


def _form(message: link.StructuredOutputs) -> StructuredOutputs:
    name = message.WhichOneof("form") or ""
    if name == "choice":
        return StructuredOutputs(choice=tuple(message.choice.texts))
    return StructuredOutputs(**({name: getattr(message, name)} if name else {}))
