import subprocess
import sys

import pytest

import qwen3_ray


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.strip()


def test_importing_the_package_and_what_routers_use_loads_no_torch() -> None:
    modules = "qwen3_ray, qwen3_ray.validation, qwen3_ray.engine.stats, qwen3_ray.engine.loop"
    assert run(f"import sys, {modules}; print('torch' in sys.modules)") == "False"


def test_threads_are_set_up_before_torch_loads() -> None:
    code = "import os, qwen3_ray; print(os.environ['OMP_WAIT_POLICY'])"
    assert run(code) == "PASSIVE"
    assert run(f"import os; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'; {code}") == "ACTIVE"


def test_every_name_exported_is_there() -> None:
    for name in qwen3_ray.__all__:
        assert getattr(qwen3_ray, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qwen3_ray.nothing  # type: ignore[attr-defined]
