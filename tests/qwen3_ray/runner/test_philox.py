import pytest

from qwen3_ray.runner.numba_philox import uniform as compiled_uniform
from qwen3_ray.runner.philox import Counter, philox4x32, uniform

MAX = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MAX, MAX, MAX, MAX), (MAX, MAX), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_words_are_those_that_random123_publishes(
    counter: Counter, key: tuple[int, int], expected: Counter
) -> None:
    assert philox4x32(counter, key) == expected


def test_the_number_is_made_of_53_bits_of_two_words() -> None:
    assert uniform(0, 0, 0) == (0x6627E8D5E169C58D >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822])
@pytest.mark.parametrize("position", [0, 1, 32_767, 2**31 - 1])
@pytest.mark.parametrize("choice", [0, 7])
def test_compiled_and_plain_numbers_are_the_same(seed: int, position: int, choice: int) -> None:
    assert compiled_uniform(seed, position, choice) == uniform(seed, position, choice)


def test_the_choice_is_the_second_word_of_the_counter() -> None:
    word_0, word_1, _, _ = philox4x32((5, 3, 0, 0), (9, 0))
    assert uniform(9, 5, 3) == (word_0 << 32 | word_1) // 2**11 / 2**53


def test_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = [uniform(7, position, 0) for position in range(4000)]
    assert min(numbers) >= 0.0
    assert max(numbers) < 1.0
    counts = [sum(int(number * 8) == octave for number in numbers) for octave in range(8)]
    assert all(abs(count - 500) < 90 for count in counts)  # more than 4 standard deviations
