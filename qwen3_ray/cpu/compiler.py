"""Numba's compiler, with its disk cache where the user may write. Kernels take `njit` from here.

The folder's name is a hash of all kernel sources and of those whose constants they take: Numba
itself notices an edit only by the time and size of the file, which an installed wheel or a copied
image need not change.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from numba import config, njit

__all__ = ["njit"]


def choose_cache_dir() -> Path:
    """`$XDG_CACHE_HOME` or `~/.cache`, or, where neither can be written, a folder for this process.

    Never a shared folder of a known name: what is in it is run.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    constants = (package / "runner" / name for name in ("philox.py", "sampling_rows.py"))
    for source in (*sorted(package.glob("*/numba_*.py")), *constants):
        digest.update(source.read_bytes())
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "qwen3-ray" / "numba" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # no home, or a read-only one
        return Path(tempfile.mkdtemp(prefix="qwen3-ray-numba-"))
    return folder


# Numba fills its config from the environment when it loads, so that types do not show its fields.
if not config.CACHE_DIR:  # type: ignore[attr-defined]  # NUMBA_CACHE_DIR wins
    config.CACHE_DIR = str(choose_cache_dir())  # type: ignore[attr-defined]
