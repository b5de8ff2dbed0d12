"""Streaming text against its plain definition: decode what there is, cut at the first stop."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen3_ray.request import FinishReason
from qwen3_ray.sampling_params import SamplingParams
from qwen3_ray.text.output_processor import Detokenizer, OutputProcessor, StopMatcher, TextDelta

# Whole characters, parts of characters, overlapping beginnings of stop strings, and two tokens
# without text; small, so that stop strings come about often.
TOKENS = [
    *(b"a", b"b", b"ab", b"ba", b"aab", b"abab", b" ", b"\n", b"", b""),
    *"é".encode().split(b"\xa9"),
    *(b"\xc3", b"\xa9", b"\xe4\xbd", b"\xa0", b"\xf0\x9f\x8e", b"\x89", b"\xff", "你a".encode()),
]
TOKEN_IDS = st.lists(st.integers(0, len(TOKENS) - 1), max_size=24)
STOPS = st.lists(
    st.one_of(
        st.text(st.sampled_from("ab"), min_size=1, max_size=5),
        st.sampled_from(["é", "\n\n", "你", "你a", "b é", "\ufffd", "a\ufffd", "🎉"]),
    ),
    max_size=4,
)
CUTS = st.lists(st.integers(0, 24), max_size=6)
FINISH_REASONS = st.sampled_from([None, *FinishReason])


@dataclass(frozen=True)
class Rules:
    """Arguments of an `OutputProcessor`."""

    stops: Sequence[str] = ()
    min_tokens: int = 0
    includes_stop: bool = False
    stop_token_ids: Collection[int] | None = None

    def processor(self) -> OutputProcessor:
        return OutputProcessor(
            TOKENS.__getitem__,
            self.stops,
            min_tokens=self.min_tokens,
            includes_stop=self.includes_stop,
            stop_token_ids=self.stop_token_ids,
        )

    def hides_last(self, token_ids: Sequence[int], finish_reason: FinishReason | None) -> bool:
        stopped = finish_reason is FinishReason.STOP and not self.includes_stop and bool(token_ids)
        return stopped and (self.stop_token_ids is None or token_ids[-1] in self.stop_token_ids)


RULES = st.builds(
    Rules,
    stops=STOPS,
    min_tokens=st.sampled_from([0, 0, 1, 3, 9]),
    includes_stop=st.booleans(),
    stop_token_ids=st.sampled_from([None, None, {1, 6}]),
)


def by_definition(
    token_ids: Sequence[int], rules: Rules, finish_reason: FinishReason | None
) -> tuple[str | None, int, str | None]:
    """(text, kept tokens, stop string); text None where it is not complete yet."""
    visible = token_ids[:-1] if rules.hides_last(token_ids, finish_reason) else token_ids
    skipped = len(known_text(visible[: rules.min_tokens]))
    for num_kept in range(rules.min_tokens + 1, len(visible) + 1):
        if cut := first_stop(known_text(visible[:num_kept]), rules, skipped):
            return cut[0], num_kept, cut[1]
    text = b"".join(TOKENS[token_id] for token_id in visible).decode(errors="replace")
    if finish_reason is None:
        return None, len(token_ids), None
    # The end of the text belongs to the last token.
    if len(visible) > rules.min_tokens and (cut := first_stop(text, rules, skipped)):
        return cut[0], len(visible), cut[1]
    return text, len(token_ids), None


def known_text(token_ids: Sequence[int]) -> str:
    """The characters known after some tokens: all but an unfinished one at the end."""
    return Detokenizer().push(b"".join(TOKENS[token_id] for token_id in token_ids))


def first_stop(text: str, rules: Rules, skipped: int) -> tuple[str, str] | None:
    """The text up to the first stop string that ends after `skipped` characters, and that one."""
    found = [
        (at, order, stop)
        for order, stop in enumerate(rules.stops)
        for at in range(len(text))
        if text.startswith(stop, at) and at + len(stop) > skipped
    ]
    if not found:
        return None
    at, _, stop = min(found)
    return text[: at + len(stop) if rules.includes_stop else at], stop


def run(
    token_ids: Sequence[int],
    rules: Rules,
    finish_reason: FinishReason | None,
    cuts: Sequence[int] = (),
) -> tuple[str, int, str | None]:
    """Push `token_ids` cut at `cuts`; (text, kept tokens, stop string)."""
    processor = rules.processor()
    last = len(token_ids) - rules.hides_last(token_ids, finish_reason)
    bounds = [0, *sorted(cut for cut in cuts if cut <= last), len(token_ids)]
    pieces = [token_ids[low:high] for low, high in pairwise(bounds)]
    deltas = [processor.push(piece) for piece in pieces[:-1]]
    deltas.append(processor.push(pieces[-1], finish_reason))
    return (
        "".join(delta.text for delta in deltas),
        sum(delta.num_kept_tokens for delta in deltas),
        deltas[-1].stop_string,
    )


@settings(max_examples=600, deadline=None)
@given(token_ids=TOKEN_IDS, rules=RULES, finish_reason=FINISH_REASONS, cuts=CUTS)
@example(token_ids=[], rules=Rules(["a"]), finish_reason=FinishReason.STOP, cuts=[0])
@example(token_ids=[4, 0, 1, 1], rules=Rules(["aba", "b"], 2), finish_reason=None, cuts=[])
def test_text_is_its_definition_however_the_ids_are_cut(
    token_ids: list[int], rules: Rules, finish_reason: FinishReason | None, cuts: list[int]
) -> None:
    result = run(token_ids, rules, finish_reason, cuts)
    assert result == run(token_ids, rules, finish_reason)
    text, num_kept, stop_string = by_definition(token_ids, rules, finish_reason)
    assert result[1:] == (num_kept, stop_string)
    if text is not None:
        assert result[0] == text


@settings(max_examples=200, deadline=None)
@given(token_ids=TOKEN_IDS, stops=STOPS)
def test_nothing_more_is_held_back_than_an_unfinished_character_or_stop_string(
    token_ids: list[int], stops: list[str]
) -> None:
    text, _, stop_string = run(token_ids, Rules(stops), None)
    if stop_string is None:
        known = known_text(token_ids)
        held = known.removeprefix(text)
        assert known == text + held
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
@example(data="a🎉é".encode(), cuts=[1, 2, 3, 4, 5, 6])
@example(data=b"\xf0\x9f\x8e", cuts=[1, 2])
def test_bytes_cut_anywhere_give_the_text_of_the_whole(data: bytes, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    bounds = [0, *sorted(cuts), len(data)]
    text = "".join(detokenizer.push(data[low:high]) for low, high in pairwise(bounds))
    assert "\ufffd" not in text or "\ufffd" in data.decode(errors="replace")
    assert text + detokenizer.finish() == data.decode(errors="replace")


def test_an_incomplete_character_waits_for_its_last_byte() -> None:
    detokenizer = Detokenizer()
    pieces = [detokenizer.push(bytes([byte])) for byte in "x🎉".encode()]
    assert pieces == ["x", "", "", "", "🎉"]
    assert detokenizer.finish() == ""


@pytest.mark.parametrize(
    ("stops", "pieces", "passed", "stop"),
    [
        (["END"], ["xE", "N", "D y"], ["x", "", ""], "END"),
        (["END"], ["xE", "NE", "ND"], ["x", "EN", ""], "END"),
        (["aab"], ["aaa", "ab"], ["a", "a"], "aab"),
        (["bc", "abcd"], ["abcd"], [""], "abcd"),
        (["bc", "abcd"], ["abc"], ["a"], "bc"),
        (["ab", "a"], ["xab"], ["x"], "ab"),
        (["a", "ab"], ["xab"], ["x"], "a"),
        (["\n\n"], ["one\n", "two\n", "\n"], ["one", "\ntwo", ""], "\n\n"),
    ],
)
def test_a_stop_string_is_found_across_pieces_and_held_back_from_its_beginning(
    stops: list[str], pieces: list[str], passed: list[str], stop: str
) -> None:
    matcher = StopMatcher(stops)
    results = [matcher.push(piece) for piece in pieces]
    assert [text for text, _ in results] == passed
    assert [found for _, found in results] == [None] * (len(pieces) - 1) + [stop]


def ids(*tokens: bytes) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def test_a_stop_string_keeps_the_token_that_completes_it_and_discards_later_ones() -> None:
    processor = OutputProcessor(TOKENS.__getitem__, ["ba"])
    delta = processor.push(ids(b"a", b"b", b"ab", b" ", b"a"))
    assert delta == TextDelta(text="a", num_kept_tokens=3, stop_string="ba")
    late = processor.push(ids(b"b", b"b"), FinishReason.LENGTH)
    assert late == TextDelta(text="", num_kept_tokens=0, stop_string="ba")


@pytest.mark.parametrize("finish_reason", [FinishReason.LENGTH, FinishReason.STOP])
def test_text_held_back_for_a_stop_string_is_released_at_the_end(
    finish_reason: FinishReason,
) -> None:
    processor = OutputProcessor(TOKENS.__getitem__, ["ab\n"])
    assert processor.push(ids(b"b", b"ab")).text == "b"
    last = ids(b" ") if finish_reason is FinishReason.STOP else []
    assert processor.push(last, finish_reason) == TextDelta(text="ab", num_kept_tokens=len(last))


@pytest.mark.parametrize("stops", [[], ["\n"]])
def test_the_token_that_stops_an_output_counts_but_adds_no_text(stops: list[str]) -> None:
    processor = OutputProcessor(TOKENS.__getitem__, stops)
    delta = processor.push(ids(b"a", b"b"), FinishReason.STOP)
    assert delta == TextDelta(text="a", num_kept_tokens=2)


@pytest.mark.parametrize(
    ("stop_token_ids", "text"), [(None, "a"), ([TOKENS.index(b"b")], "a"), ([7], "ab")]
)
def test_an_output_whose_form_is_complete_stops_without_a_stop_token(
    stop_token_ids: list[int] | None, text: str
) -> None:
    processor = OutputProcessor(TOKENS.__getitem__, stop_token_ids=stop_token_ids)
    delta = processor.push(ids(b"a", b"b"), FinishReason.STOP)
    assert delta == TextDelta(text=text, num_kept_tokens=2)


class Bytes:
    """Token 9 is special, every other one is its own letter."""

    def token_bytes(self, token_id: int) -> bytes:
        return b"<end>" if token_id == 9 else bytes([ord("a") + token_id])

    def output_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == 9 else self.token_bytes(token_id)


@pytest.mark.parametrize(
    ("params", "token_ids", "text"),
    [
        (SamplingParams(), [0, 9, 1, 9], "ab"),
        (SamplingParams(skip_special_tokens=False), [0, 9, 1, 9], "a<end>b"),
        (SamplingParams(include_stop_str_in_output=True), [0, 1, 9], "ab"),
        (
            SamplingParams(include_stop_str_in_output=True, skip_special_tokens=False),
            [0, 1, 9],
            "ab<end>",
        ),
        (SamplingParams(), [0, 1], "ab"),
        (SamplingParams(stop_token_ids=[1]), [0, 1], "a"),
        (SamplingParams(stop_token_ids=[1], include_stop_str_in_output=True), [0, 1], "ab"),
        (SamplingParams(ignore_eos=True, skip_special_tokens=False), [0, 9], "a<end>"),
        (SamplingParams(stop="b"), [0, 1, 2], "a"),
        (SamplingParams(stop="b", include_stop_str_in_output=True), [0, 1, 2], "ab"),
        (SamplingParams(stop="b", min_tokens=2), [0, 1, 2, 1, 3], "abc"),
    ],
)
def test_parameters_decide_what_is_text(
    params: SamplingParams, token_ids: list[int], text: str
) -> None:
    processor = OutputProcessor.of(params, Bytes(), eos_token_ids=[9])
    assert processor.push(token_ids, FinishReason.STOP).text == text


def test_without_the_model_s_ends_a_stop_is_taken_for_a_token() -> None:
    processor = OutputProcessor.of(SamplingParams(), Bytes())
    assert processor.push([0, 1], FinishReason.STOP).text == "a"


def push_seconds(num_tokens: int, stops: list[str]) -> float:
    processor = OutputProcessor(lambda _: b"y" * 200, stops)
    start = time.thread_time()
    for _ in range(num_tokens):
        processor.push([0])
    return time.thread_time() - start


@pytest.mark.parametrize("stops", [[], ["yyz"]])
def test_a_push_costs_its_own_text_not_the_whole_output(stops: list[str]) -> None:
    # Processor time, and the best of several attempts: other work on the machine only adds to it.
    ratios = []
    for _ in range(5):
        best = {n: min(push_seconds(n, stops) for _ in range(5)) for n in (1_000, 4_000)}
        ratios.append(best[4_000] / best[1_000])
        if ratios[-1] <= 6:
            return
    pytest.fail(f"4,000 tokens cost {ratios} times as much as 1,000")
