from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import attention_speed


def test_all_keys_and_values_count_and_are_attended() -> None:
    decodes = attention_speed.make_decodes(3, 64, torch.float16, num_heads=4, num_kv_heads=2)
    assert decodes.num_bytes == 2 * 3 * 64 * 2 * attention_speed.HEAD_DIM * 2
    out = decodes.attend()
    assert isinstance(out, torch.Tensor)
    assert out.shape == (3, 4, attention_speed.HEAD_DIM)
    assert 0 < out.abs().max() < 1  # means of random values
    near = decodes.attend_near()
    assert isinstance(near, torch.Tensor)
    assert not torch.equal(near, out)


def test_it_prints_a_row_for_each_case_and_dtype(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--cases", "2x64", "1x96", "--rounds", "1"])
    attention_speed.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        [dtype, case] for dtype in ("float32", "float16") for case in ("2x64", "1x96")
    ]
    assert all(len(row) == 6 and float(number) > 0 for row in rows for number in row[2:])
