"""Checked headers of safetensors files, read before any tensor is. Knows no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from qwen3_ray.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are."""

    name: str
    file: Path
    dtype: str
    """As safetensors spells it: BF16, F32..."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    num_bytes: int

    def error(self, problem: str) -> CheckpointError:
        """A CheckpointError that names the file and the tensor."""
        return CheckpointError(self.file.name, problem, tensor=self.name)


def read_checkpoint(model_dir: Path) -> dict[str, StoredTensor]:
    """All tensors of a directory: of model.safetensors, or of the shards that its index names.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or lacks a tensor that the index
            places in it.
    """
    if (model_dir / _SINGLE_FILE).exists():
        return read_header(model_dir / _SINGLE_FILE)
    weight_map = _read_index(model_dir / _INDEX_FILE)
    headers = {name: read_header(model_dir / name) for name in sorted(set(weight_map.values()))}
    tensors = {}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise CheckpointError(file, "the index places it here, but it is missing", tensor=name)
        tensors[name] = headers[file][name]
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Tensors of one file; their bytes follow each other without gaps up to the file's end."""
    try:
        file_size = file.stat().st_size
        with file.open("rb") as stream:
            num_bytes = int.from_bytes(stream.read(8), "little")
            if not 2 <= num_bytes <= min(MAX_HEADER_BYTES, file_size - 8):
                raise CheckpointError(
                    file.name, f"not a safetensors file, or truncated: its header says {num_bytes} "
                    f"bytes, the file has {file_size}",
                )  # fmt: skip
            entries = json.loads(stream.read(num_bytes))
    except FileNotFoundError:
        raise CheckpointError(file.name, "the file does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(file.name, f"its header cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(file.name, "its header is not a JSON object")
    entries.pop("__metadata__", None)
    tensors = [_parse(file, name, entry, 8 + num_bytes) for name, entry in entries.items()]
    _check_layout(file, tensors, 8 + num_bytes, file_size)
    return {tensor.name: tensor for tensor in tensors}


def _read_index(file: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(file.read_bytes())["weight_map"]
    except FileNotFoundError:
        raise CheckpointError(
            file.parent, f"has neither {_SINGLE_FILE} nor {_INDEX_FILE}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(file.name, f"cannot be read: {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(file.name, "weight_map must be an object of tensor to file")
    for name, target in weight_map.items():
        if not isinstance(target, str) or Path(target).name != target:
            raise CheckpointError(
                file.name, f"must name a file beside it, got {target!r:.80}", tensor=name
            )
    return weight_map


def _parse(file: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        numbers_are_sizes = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        size = math.prod(shape) * ITEM_SIZES[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            file.name, f"its header entry is damaged: {error!r:.120}", tensor=name
        ) from error
    if not numbers_are_sizes or end - begin != size:
        raise CheckpointError(
            file.name,
            f"{dtype} of shape {shape} does not take the bytes {begin} to {end}",
            tensor=name,
        )
    return StoredTensor(name, file, dtype, tuple(shape), data_start + begin, size)


def _check_layout(file: Path, tensors: list[StoredTensor], data_start: int, file_size: int) -> None:
    end = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != end:
            raise tensor.error(f"begins at byte {tensor.offset}, expected {end} (overlap or gap)")
        end += tensor.num_bytes
        if end > file_size:
            raise tensor.error(f"ends at byte {end}, the file is truncated at {file_size}")
    if end != file_size:
        raise CheckpointError(file.name, f"has {file_size} bytes, its tensors end at {end}")
