"""Which directory a `--model` value means. Knows no torch."""

from __future__ import annotations

import re
from pathlib import Path

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
_WEIGHTS = ["*.safetensors"]


def resolve_model_dir(model: str | Path | None, *, with_weights: bool = True) -> Path:
    """A directory as it is, None as the bundled demo model, else a Hugging Face Hub id.

    A Hub id ("Qwen/Qwen3-4B-Base") is downloaded once, into huggingface_hub's cache; without
    weights for a process that only needs the tokenizer and the configuration.

    Raises:
        CheckpointError: no such directory, or the Hub does not have it or cannot be reached.
    """
    if model is None:
        return DEMO_MODEL_DIR
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(model, "no such directory, and not a Hub id (owner/name)")
    return _download(str(model), _SMALL_FILES + (_WEIGHTS if with_weights else []))


def _download(repo_id: str, patterns: list[str]) -> Path:
    # Loaded here: it is slow to import and only Hub ids need it.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            repo_id, f"no such directory, and the Hub did not give it: {error}"
        ) from error
