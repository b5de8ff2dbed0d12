"""Words against the plain generator; noise against the distribution that it should have."""

import math

import pytest
import torch
import triton.language as tl

from qwen3_ray.gpu.triton_jit import kernel
from qwen3_ray.gpu.triton_philox import gumbel, gumbel_noise, random_words
from qwen3_ray.runner.philox import philox4x32

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MASK = 0xFFFFFFFF
COUNT = 64


@kernel
def words_kernel(
    seeds: tl.tensor,
    positions: tl.tensor,
    choices: tl.tensor,
    draw: tl.tensor,
    out: tl.tensor,
    count: tl.constexpr,
) -> None:
    lane = tl.arange(0, count)
    words = random_words(tl.load(seeds), tl.load(positions), tl.load(choices), draw, lane)
    for index in tl.static_range(4):
        tl.store(out + lane * 4 + index, words[index].to(tl.int64))


@kernel
def noise_kernel(
    seeds: tl.tensor,
    positions: tl.tensor,
    choices: tl.tensor,
    out: tl.tensor,
    count: tl.constexpr,
) -> None:
    first = tl.program_id(0) * count
    noise = gumbel_noise(tl.load(seeds), tl.load(positions), tl.load(choices), first, count)
    tl.store(out + first + tl.arange(0, count), noise)


@kernel
def gumbel_kernel(words: tl.tensor, out: tl.tensor, count: tl.constexpr) -> None:
    index = tl.arange(0, count)
    tl.store(out + index, gumbel(tl.load(words + index).to(tl.uint32)))


def numbers(seed: int, position: int, choice: int) -> list[torch.Tensor]:
    return [
        torch.tensor([seed], device=DEVICE),
        torch.tensor([position], dtype=torch.int32, device=DEVICE),
        torch.tensor([choice], dtype=torch.int32, device=DEVICE),
    ]


def noise_of(seed: int, position: int, choice: int, *, count: int, size: int) -> torch.Tensor:
    out = torch.full((size,), torch.nan, device=DEVICE)
    noise_kernel[(size // count,)](*numbers(seed, position, choice), out, count=count)
    return out.cpu()


def gumbel_of(words: list[int]) -> list[float]:
    given = torch.tensor(words, device=DEVICE)
    out = torch.full((len(words),), torch.nan, device=DEVICE)
    gumbel_kernel[(1,)](given, out, count=len(words))
    return out.tolist()


def exact_gumbel(word: int) -> float:
    return -math.log(-math.log1p(-(word + 0.5) / 2**32))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822])
@pytest.mark.parametrize(("position", "choice"), [(0, 0), (5, 7), (2**31 - 1, 1)])
@pytest.mark.parametrize("draw", [0, 1])
def test_words_are_those_of_the_plain_generator(
    seed: int, position: int, choice: int, draw: int
) -> None:
    out = torch.full((COUNT, 4), -1, device=DEVICE)
    words_kernel[(1,)](*numbers(seed, position, choice), draw, out, count=COUNT)
    key = (seed & MASK, seed >> 32 & MASK)
    for lane in (0, 1, COUNT - 1):
        assert tuple(out[lane].tolist()) == philox4x32((position, choice, draw, lane), key)


def test_a_token_s_noise_is_its_own_wherever_its_chunk_begins() -> None:
    small = noise_of(-9, 5, 3, count=16, size=128)
    assert torch.equal(small, noise_of(-9, 5, 3, count=128, size=128))
    for token_id in (0, 1, 2, 3, 21, 127):
        words = philox4x32((5, 3, 1, token_id // 4), (-9 & MASK, MASK))
        word = words[token_id % 4]
        assert small[token_id].item() == pytest.approx(exact_gumbel(word), rel=1e-5, abs=1e-5)
    assert not torch.isin(small, noise_of(-9, 6, 3, count=128, size=128)).any()
    assert not torch.isin(small, noise_of(-9, 5, 4, count=128, size=128)).any()


def test_noise_is_right_to_the_ends_and_finite() -> None:
    """Tokens with a small share win by the largest noise: that of the smallest words."""
    words = [0, 1, 2, 1000, 2**20, 2**28 - 1, 2**28, 2**28 + 999, 2**31, 2**32 - 2**20]
    words += [2**32 - 1000, 2**32 - 300, 2**32 - 129, 2**32 - 128, 2**32 - 2, 2**32 - 1]
    noise = gumbel_of(words)
    for word, value in zip(words[:-6], noise[:-6], strict=True):
        assert value == pytest.approx(exact_gumbel(word), rel=4e-6, abs=4e-6)
    assert all(-3.2 < value < -2.6 for value in noise[-6:])
    assert noise == sorted(noise, reverse=True)
    assert noise[0] == pytest.approx(33 * math.log(2), rel=1e-6)


def test_noise_has_gumbel_s_distribution() -> None:
    """Chi-square over 16 equal parts; the quantile at 0.999 of 15 degrees of freedom is 37.7."""
    noise = noise_of(1, 2, 3, count=1024, size=16 * 1024).double()
    share = (-(-noise).exp()).exp()
    counts = torch.bincount((share * 16).long().clamp(0, 15), minlength=16)
    assert ((counts - 1024) ** 2 / 1024).sum() < 37.7


def test_the_largest_score_is_each_token_with_its_probability() -> None:
    """The quantile at 0.999 of seven degrees of freedom is 24.3."""
    num_draws, logits = 2048, torch.tensor([0.0, 1, 2, -1, 0.5, 0.5, -3, 1.5])
    noise = noise_of(4, 0, 0, count=1024, size=8 * num_draws).reshape(num_draws, 8)
    counts = torch.bincount((logits + noise).argmax(1), minlength=8)
    expected = logits.softmax(0) * num_draws
    assert ((counts - expected) ** 2 / expected).sum() < 24.3
