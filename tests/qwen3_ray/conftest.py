from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random tensors in every run; the pure core's tests do not load torch for it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
