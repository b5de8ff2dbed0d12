"""What an engine says is what the front hears."""

from dataclasses import fields

from cluster.link.logprobs import logprobs_of
from cluster.replica.messages import finish_of, step_event
from qwen3_ray.engine.stats import EngineStats
from qwen3_ray.request import FinishReason, TokenDelta, TokenLogprobs

ENTRY = TokenLogprobs(token_id=5, logprob=-0.5, rank=2, top=((6, -0.25), (5, -0.5)))
FULL = TokenDelta(
    request_id="r",
    token_ids=(5, 5),
    logprobs=(ENTRY, ENTRY),
    prompt_logprobs=(ENTRY,),
    num_cached_tokens=0,
    finish_reason=FinishReason.STOP,
    stop_reason=5,
    error="an error",
    error_param="n",
)


def test_every_field_of_a_delta_arrives() -> None:
    (delta,) = step_event([FULL], EngineStats()).deltas
    assert delta.HasField("num_cached_tokens")
    assert (
        TokenDelta(
            request_id=delta.request_id,
            token_ids=tuple(delta.token_ids),
            logprobs=tuple(map(logprobs_of, delta.logprobs)),
            prompt_logprobs=tuple(map(logprobs_of, delta.prompt_logprobs)),
            num_cached_tokens=delta.num_cached_tokens,
            finish_reason=finish_of(delta.finish_reason),
            stop_reason=delta.stop_token_id,
            error=delta.error,
            error_param=delta.error_param,
        )
        == FULL
    )
    defaults = TokenDelta(request_id="")
    for name in TokenDelta._fields:
        assert getattr(FULL, name) != getattr(defaults, name), name


def test_what_a_delta_does_not_say_stays_unsaid() -> None:
    (delta,) = step_event([TokenDelta(request_id="r")], EngineStats()).deltas
    assert not delta.HasField("num_cached_tokens")
    assert not delta.HasField("stop_token_id")
    assert (delta.error, delta.error_param) == ("", "")


def test_every_figure_of_the_engine_arrives() -> None:
    numbers = {
        field.name: number
        for number, field in enumerate(fields(EngineStats), start=1)
        if field.name != "numerics_fingerprint"
    }
    stats = step_event([], EngineStats(**numbers)).stats
    assert {name: getattr(stats, name) for name in numbers} == numbers
