"""The engine imports with torch, safetensors, tokenizers and numpy alone, and runs a model."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwen3_ray

ENGINE = Path(qwen3_ray.__file__).parent
ALLOWED = {"torch", "torchgen", "safetensors", "tokenizers", "numpy", "typing_extensions"}
"""The last is torch's own: it does not load without."""

CPU_BACKEND = {
    "qwen3_ray.cpu.compiler",
    "qwen3_ray.cpu.features",
    "qwen3_ray.distributed.shared_collectives",
    "qwen3_ray.layers.fused",
    "qwen3_ray.layers.packed",
    "qwen3_ray.layers.quantized",
}
"""Loaded where Numba's kernels are chosen."""
CUDA_BACKEND = {"qwen3_ray.layers.fp8"}
"""Loaded where Triton's kernels are chosen."""
LOADED_ON_DEMAND = {"qwen3_ray.text.jinja_template", "qwen3_ray.text.grammar_worker"}
"""For chats, and for grammars in a process of their own."""
COMPILER_NAMES = {"numba": ("numba", "llvmlite"), "triton": ("triton",)}

PREAMBLE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first in {ALLOWED!r} or first in sys.stdlib_module_names or first == "qwen3_ray":
            return None
        raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_blocked(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        cwd=ENGINE.parent,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ENGINE.glob("**/*.py")):
        parts = path.relative_to(ENGINE.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def is_compiled(module: str) -> bool:
    return module.rpartition(".")[2].startswith(("numba_", "triton_"))


def test_each_module_but_those_of_a_compiler_s_backend_imports() -> None:
    names = [name for name, _ in modules() if not is_compiled(name)]
    blocked = run_blocked(f"""
from importlib import import_module
for name in {names!r}:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        assert str(error).startswith("blocked"), error
        print(name)
""")
    # Equal, not less: a module that no longer needs more must leave the list.
    assert set(blocked.split()) == CPU_BACKEND | CUDA_BACKEND | LOADED_ON_DEMAND


@pytest.mark.parametrize("compiler", COMPILER_NAMES)
def test_only_files_named_after_a_compiler_import_it(compiler: str) -> None:
    named_otherwise = {"numba": CPU_BACKEND, "triton": set()}[compiler]
    for name, path in modules():
        for imported in imported_packages(path):
            if imported in COMPILER_NAMES[compiler]:
                last = name.rpartition(".")[2]
                assert last.startswith(f"{compiler}_") or name in named_otherwise, name


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def test_a_model_with_reference_kernels_runs_without_more(tmp_path: Path) -> None:
    printed = run_blocked(f"""
from pathlib import Path
from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_forward import forward_logits
from qwen3_ray.testing_models import TINY_MODEL, make_checkpoint

config = EngineConfig(model_dir=make_checkpoint(Path({str(tmp_path)!r})), dtype="float32")
model = load_model(config, TINY_MODEL, TPGroup.single(), kernels="reference")
print(tuple(forward_logits(model, [1, 2, 3]).shape))
""")
    assert printed.strip() == "(3, 259)"
