"""Compiles every specimen for sm_90, on any machine, and says what each kernel uses.

    python -m tests.gpu_compile.compile_specimens [topic...] [--json]

A topic is what follows `specimens_` in a file's name. Registers and spills are those that ptxas
reports. Kernels that are interpreted cannot be compiled, so `TRITON_INTERPRET` must not be set.
"""

import argparse
import ast
import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from tests.gpu_compile.layouts import read_and_written_by_several, sums
from tests.gpu_compile.specimen import Specimen

HERE = Path(__file__).parent
ENGINE = HERE.parent.parent / "qwen3_ray"
SM_90, WARP_SIZE = 90, 32
POINTER_ALIGNMENT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What became of one specimen."""

    topic: str
    kernel: str
    """Module and function."""
    name: str
    error: str = ""
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    products: str = ""
    """Instructions of tensor cores, `wgmma` or `mma`, with their shapes; empty if none is used."""
    remarks: str = ""
    """What ptxas says of lost performance: as of results that are read without being waited for."""
    sums: tuple[str, ...] = ()
    """See `layouts.sums`."""
    reread: tuple[str, ...] = ()
    """See `layouts.read_and_written_by_several`."""


def topics() -> list[str]:
    """All there are."""
    return sorted(path.stem.removeprefix("specimens_") for path in HERE.glob("specimens_*.py"))


def specimens(topic: str) -> list[Specimen]:
    """Of one file."""
    found: list[Specimen] = import_module(f"tests.gpu_compile.specimens_{topic}").SPECIMENS
    return found


def launched_kernels() -> Iterator[str]:
    """Module and name of each function of the engine that is decorated with `kernel`."""
    for path in sorted(ENGINE.glob("**/triton_*.py")):
        module = ".".join(path.relative_to(ENGINE.parent).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(map(_is_kernel, node.decorator_list)):
                yield f"{module}.{node.name}"


def compile_one(topic: str, index: int) -> Usage:
    """Compile one specimen; what it raises is its result."""
    specimen = specimens(topic)[index]
    function = specimen.kernel
    kernel = f"{function.fn.__module__}.{function.fn.__name__}"
    name = specimen.name or str(index)
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            compiled = _compile(specimen)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Usage(topic=topic, kernel=kernel, name=name, error=text)
    return Usage(
        topic=topic,
        kernel=kernel,
        name=name,
        registers=_number(r"Used (\d+) registers", log.getvalue()),
        spilled_bytes=_number(r"(\d+) bytes spill stores", log.getvalue()),
        shared_bytes=compiled.metadata.shared,
        products=_products(compiled.asm["ptx"]),
        remarks="\n".join(re.findall(r"Potential Performance Loss.*", log.getvalue())),
        sums=tuple(sums(compiled.asm["ttgir"])),
        reread=tuple(read_and_written_by_several(compiled.asm["ttgir"])),
    )


def compile_all(names: list[str]) -> list[Usage]:
    """Compile the specimens of these topics, on as many processes as the machine has cores."""
    jobs = [(topic, index) for topic in names for index in range(len(specimens(topic)))]
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    if workers < 2:
        return [compile_one(*job) for job in jobs]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(compile_one, *zip(*jobs, strict=True)))


def _is_kernel(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(function, ast.Name) and function.id == "kernel"


def _compile(specimen: Specimen) -> CompiledKernel:
    # The log is printed only by a compilation that really runs.
    knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
    names = specimen.kernel.arg_names
    signature = {
        name: "constexpr" if name in specimen.constants else specimen.signature[name]
        for name in names
    }
    if unknown := (specimen.signature.keys() | specimen.constants.keys()) - set(names):
        raise LookupError(f"the kernel has no parameter {', '.join(sorted(unknown))}")
    attributes = {
        (index,): [["tt.divisibility", POINTER_ALIGNMENT]]
        for index, name in enumerate(names)
        if signature[name].startswith("*")
    }
    source = ASTSource(specimen.kernel, signature, specimen.constants, attributes)
    options = {
        "num_warps": specimen.num_warps,
        "num_stages": specimen.num_stages,
        "enable_fp_fusion": specimen.enable_fp_fusion,
    }
    return triton.compile(source, target=GPUTarget("cuda", SM_90, WARP_SIZE), options=options)


def _number(pattern: str, log: str) -> int:
    """The largest, should ptxas have compiled several functions."""
    found = re.findall(pattern, log)
    if not found:
        raise LookupError(f"ptxas did not say: {pattern}")
    return max(map(int, found))


def _products(ptx: str) -> str:
    found = re.findall(r"\b(wgmma|mma)\.(?:mma_async\.)?sync\.aligned\.(m\d+n\d+k\d+)", ptx)
    return ", ".join(sorted({" ".join(each) for each in found}))


def _line(usage: Usage) -> str:
    title = f"{usage.kernel} [{usage.name}]"
    if usage.error:
        return f"{title}: {usage.error}"
    return (
        f"{title}: {usage.registers} registers, {usage.spilled_bytes} bytes spilled, "
        f"{usage.shared_bytes} bytes shared {usage.products}"
    ).rstrip()


def main() -> None:
    """Command line; exit status 1 when a specimen does not compile."""
    parser = argparse.ArgumentParser(description="Compiles specimens for sm_90.")
    parser.add_argument("topics", nargs="*", help=f"of {', '.join(topics())} (default: all)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    # Triton's own cache would keep a copy for each try.
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TRITON_CACHE_DIR"] = directory
        usages = compile_all(options.topics or topics())
    text = "\n".join(map(_line, usages))
    if options.json:
        usages_as_json = [asdict(usage) for usage in usages]
        text = json.dumps({"kernels": list(launched_kernels()), "specimens": usages_as_json})
    sys.stdout.write(f"{text}\n")
    sys.exit(any(usage.error for usage in usages))


if __name__ == "__main__":
    main()
