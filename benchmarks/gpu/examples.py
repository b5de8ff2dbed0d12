"""A plug-in of pytest: examples for tests that ask Hypothesis for them, where it is not installed.

As many as they ask for, drawn from seed 0; none is made smaller when it fails. Knows as much of
Hypothesis as the kernels' tests use.
"""

from __future__ import annotations

import importlib.util
import inspect
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Test = Callable[..., None]


class Strategy:
    """How values are drawn."""

    def __init__(self, draw: Callable[[random.Random], Any]) -> None:
        self.draw = draw

    def flatmap(self, make: Callable[[Any], Strategy]) -> Strategy:
        """Of the strategy that `make` makes of a value."""
        return Strategy(lambda rng: make(self.draw(rng)).draw(rng))


def just(value: object) -> Strategy:
    """Always the same."""
    return Strategy(lambda _: value)


def booleans() -> Strategy:
    """True or False."""
    return sampled_from((False, True))


def integers(least: int, most: int) -> Strategy:
    """From `least` to `most`; the two come often."""
    return Strategy(lambda rng: rng.choice((least, most, rng.randint(least, most))))


def sampled_from(values: Sequence[object]) -> Strategy:
    """One of them."""
    return Strategy(lambda rng: rng.choice(values))


def one_of(*strategies: Strategy) -> Strategy:
    """What one of them draws."""
    return Strategy(lambda rng: rng.choice(strategies).draw(rng))


def tuples(*strategies: Strategy) -> Strategy:
    """A value of each."""
    return Strategy(lambda rng: tuple(strategy.draw(rng) for strategy in strategies))


def lists(strategy: Strategy, *, min_size: int = 0, max_size: int = 8) -> Strategy:
    """`min_size` to `max_size` values."""
    return Strategy(
        lambda rng: [strategy.draw(rng) for _ in range(rng.randint(min_size, max_size))]
    )


def fixed_dictionaries(strategies: Mapping[str, Strategy]) -> Strategy:
    """A value for each key."""
    return Strategy(lambda rng: {key: each.draw(rng) for key, each in strategies.items()})


def composite(function: Callable[..., Any]) -> Callable[..., Strategy]:
    """Whatever `function` makes of what it draws; see Hypothesis."""

    def strategy(*args: object, **options: object) -> Strategy:
        return Strategy(
            lambda rng: function(lambda inner: inner.draw(rng), *args, **options)  # type: ignore[no-untyped-call, unused-ignore]
        )

    return strategy


def settings(*, max_examples: int, deadline: None = None) -> Callable[[Test], Test]:  # noqa: ARG001
    """How many examples; given to what `given` made."""

    def decorate(test: Test) -> Test:
        test.max_examples = max_examples  # type: ignore[attr-defined]
        return test

    return decorate


def given(**strategies: Strategy) -> Callable[[Test], Test]:
    """The test is run with each example."""

    def decorate(test: Test) -> Test:
        @wraps(test)
        def run(**others: object) -> None:
            rng = random.Random(0)
            for _ in range(run.max_examples):  # type: ignore[attr-defined]
                example = {name: strategy.draw(rng) for name, strategy in strategies.items()}
                test(**others, **example)

        # What pytest reads: the rest are its fixtures and parameters.
        parameters = inspect.signature(test).parameters.values()
        left = [parameter for parameter in parameters if parameter.name not in strategies]
        run.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
        run.max_examples = 20  # type: ignore[attr-defined]
        run.strategies = strategies  # type: ignore[attr-defined]
        return run

    return decorate


def stand_in() -> None:
    """From now on `import hypothesis` gives this."""
    hypothesis, strategies = ModuleType("hypothesis"), ModuleType("hypothesis.strategies")
    for function in (
        just, booleans, integers, sampled_from, one_of, tuples, lists, fixed_dictionaries,
        composite,
    ):  # fmt: skip
        setattr(strategies, function.__name__, function)
    vars(hypothesis).update(given=given, settings=settings, strategies=strategies)
    for module in (hypothesis, strategies):
        module.__spec__ = ModuleSpec(module.__name__, None)  # torch.compile looks at it
        sys.modules[module.__name__] = module


if importlib.util.find_spec("hypothesis") is None:
    stand_in()
