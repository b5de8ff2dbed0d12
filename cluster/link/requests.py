"""A request as it crosses the link, both ways: the one place that names its fields on the wire."""

from __future__ import annotations

from collections.abc import Sequence

from protos.v1.link_pb2 import Sampling, Submit
from qwen3_ray.request import GenerateRequest
from qwen3_ray.sampling_params import SamplingParams


def submit_message(
    request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
) -> Submit:
    """The message of a request. `params` has its seed drawn and `max_tokens` decided."""
    return Submit(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        sampling=Sampling(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=params.max_tokens,
            seed=params.seed,
            stop=params.stop_strings,
            stop_token_ids=params.stop_token_ids,
            ignore_eos=params.ignore_eos,
        ),
    )


def request_of(submit: Submit) -> GenerateRequest:
    """The request that `submit_message` has put into a message.

    Raises:
        RequestError: a sampling parameter is out of its range.
    """
    sampling = submit.sampling
    return GenerateRequest(
        request_id=submit.request_id,
        prompt_token_ids=tuple(submit.prompt_token_ids),
        params=SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop=tuple(sampling.stop),
            stop_token_ids=tuple(sampling.stop_token_ids),
            ignore_eos=sampling.ignore_eos,
        ),
    )
