"""Logprobs cross the link as they are, to the last bit of a float32."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.link.logprobs import logprobs_message, logprobs_of
from protos.v1 import link_pb2 as link
from qwen3_ray.request import TokenLogprobs

INT32S = st.integers(0, 2**31 - 1)
LOGPROBS = st.floats(max_value=0, width=32, allow_nan=False)


@given(
    entry=st.builds(
        TokenLogprobs,
        token_id=INT32S,
        logprob=LOGPROBS,
        rank=st.integers(1, 200_000),
        top=st.lists(st.tuples(INT32S, LOGPROBS), max_size=20).map(tuple),
    )
)
def test_an_entry_crosses_the_link_unchanged(entry: TokenLogprobs) -> None:
    data = logprobs_message(entry).SerializeToString()
    assert logprobs_of(link.TokenLogprobs.FromString(data)) == entry


def test_an_entry_of_twenty_others_is_as_small_as_the_frames_bound_says() -> None:
    entry = TokenLogprobs(
        token_id=200_000,
        logprob=-1.5,
        rank=200_000,
        top=tuple((200_000 + number, -1.5) for number in range(20)),
    )
    assert logprobs_message(entry).ByteSize() <= 250
