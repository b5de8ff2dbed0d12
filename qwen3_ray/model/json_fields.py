"""Fields of a checkpoint's JSON files; what is missing or of a wrong kind is named. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from qwen3_ray.errors import CheckpointError


class JsonFields:
    """Fields of one JSON object; what is missing or of a wrong kind raises and is named."""

    def __init__(self, file: Path, values: Mapping[str, object], prefix: str = "") -> None:
        self.file = file
        self._values = values
        self._prefix = prefix

    def get(self, name: str) -> object:
        """The value, or None when it is absent or null."""
        return self._values.get(name)

    def child(self, name: str) -> JsonFields | None:
        """The object under `name`, or None."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, got {value!r:.80}")
        return JsonFields(self.file, value, f"{name}.")

    def positive_int(self, name: str) -> int:
        value = self.required(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, f"must be a positive integer, got {value!r:.80}")
        return value

    def positive_float(self, name: str) -> float:
        value = self.required(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a positive number, got {value!r:.80}")
        if not 0 < value <= sys.float_info.max:
            raise self.error(name, f"must be a positive number, got {value!r:.80}")
        return float(value)

    def optional_positive_float(self, name: str) -> float | None:
        return None if self.get(name) is None else self.positive_float(name)

    def boolean(self, name: str) -> bool:
        value = self.required(name)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, got {value!r:.80}")
        return value

    def required(self, name: str) -> object:
        value = self.get(name)
        if value is None:
            raise self.error(name, "is missing")
        return value

    def error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(self.file, f"field {self._prefix}{name} {problem}")


def read_json(file: Path) -> Mapping[str, object]:
    """The object that `file` holds.

    Raises:
        CheckpointError: there is no such file, or it holds no JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(file, "the file does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(file, f"cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(file, "must hold a JSON object")
    return value
