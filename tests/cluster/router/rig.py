"""A router over fake replicas, and the whole of what it answers."""

from cluster.router.inference import Chunk, InferenceRequest
from cluster.router.router import Router
from cluster.router.testing import FakeLinks, FakeReplica, FakeTokenizer
from qwen3_ray.sampling_params import SamplingParams

OWN = ("echo", "truncate_prompt_tokens", "truncation_side", "priority", "cache_salt")


def make_router(*replicas: FakeReplica, hold_s: float = 0.2) -> Router:
    links = FakeLinks(*replicas)
    return Router(links, model="fake", tokenizer=FakeTokenizer(), hold_s=hold_s)


def make_request(prompt: str | tuple[int, ...] = "hello", **fields: object) -> InferenceRequest:
    """A request; `fields` are its own or those of its parameters."""
    own = {name: fields.pop(name) for name in OWN if name in fields}
    values = {"max_tokens": 5, "seed": 3, **fields}
    return InferenceRequest(model="fake", prompt=prompt, params=SamplingParams(**values), **own)


async def collect(router: Router, request: InferenceRequest) -> Chunk:
    """The whole of the one answer."""
    async with router.generate(request) as generation:
        (chunk,) = await generation.collect()
        return chunk
