"""The comparison with and without drafts runs, and sees equal outputs."""

from __future__ import annotations

import pytest

from benchmarks.speculation import Gain, print_table, run


def test_drafts_change_no_output_and_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    gains = run("demo", num_streams=2, num_tokens=12, num_rounds=1)
    assert [gain.name for gain in gains] == ["repetitive, greedy", "random, sampled"]
    assert all(gain.is_equal and gain.num_tokens == 24 for gain in gains)
    assert all(gain.num_steps[1] == 11 and gain.num_steps[0] <= 11 for gain in gains)
    assert all(0 <= gain.num_accepted <= gain.num_drafts for gain in gains)
    print_table(gains)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_an_output_that_differs_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    gain = Gain("x", 10, (4, 8), 6, 3, (1.0, 1.5), is_equal=False)
    assert (gain.fewer_steps, gain.speed) == (2.0, 1.5)
    print_table([gain])
    assert "OUTPUTS DIFFER" in capsys.readouterr().out
