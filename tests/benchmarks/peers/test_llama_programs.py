"""What llama.cpp's programs print is read."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers.llama_programs import decode_rate, prefill_rate

BENCH = json.dumps([{"n_prompt": 512, "n_gen": 0, "avg_ts": 150.0, "samples_ts": [151.5]}])
BATCHED = """main: n_kv_max = 8192
{"n_kv_max": 8192, "pp": 128, "tg": 64, "pl": 8, "speed_pp": 140.0, "speed_tg": 58.5}
{"n_kv_max": 8192, "pp": 128, "tg": 64, "pl": 16, "speed_pp": 141.0, "speed_tg": 74.5}
"""


def test_the_prefill_rate_is_that_of_its_one_run() -> None:
    assert prefill_rate(BENCH) == 151.5


def test_the_decode_rate_is_that_of_the_batch() -> None:
    assert decode_rate(BATCHED, 16) == 74.5


def test_a_batch_that_did_not_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        decode_rate(BATCHED, 1)
