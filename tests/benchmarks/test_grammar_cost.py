import sys

import pytest

from benchmarks import grammar_cost


def test_every_form_has_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["grammar_cost", "--tokens", "20"])
    grammar_cost.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4096 tokens")
    assert [line.split("  ")[0] for line in lines[2:]] == list(grammar_cost.FORMS)
