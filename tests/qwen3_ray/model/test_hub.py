"""Which directory a model value means, without a network."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import CheckpointError
from qwen3_ray.model.hub import resolve_model_dir


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model_dir(tmp_path) == tmp_path.resolve()
    assert resolve_model_dir(None) == DEMO_MODEL_DIR


@pytest.mark.parametrize("model", ["no-such-directory", "/no/such", "a/b/c"])
def test_what_is_neither_directory_nor_hub_id_is_refused_by_name(model: str) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve_model_dir(model)


@pytest.mark.parametrize(
    ("with_weights", "downloaded"),
    [
        (True, {"config.json", "tokenizer.json", "chat_template.jinja", "a.safetensors"}),
        (False, {"config.json", "tokenizer.json", "chat_template.jinja"}),
    ],
    ids=["a rank", "a router"],
)
def test_a_hub_id_is_downloaded_without_what_is_not_needed(
    with_weights: bool, downloaded: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {*downloaded, "a.safetensors", "README.md", "pytorch_model.bin"}
    taken: set[str] = set()

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == "Qwen/Qwen3-4B-Base"
        taken.update(f for f in there if any(fnmatch(f, pattern) for pattern in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model_dir("Qwen/Qwen3-4B-Base", with_weights=with_weights) == tmp_path
    assert taken == downloaded
