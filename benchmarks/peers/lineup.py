"""Who takes part: ours and every peer that is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import places
from benchmarks.peers.contender import Contender
from benchmarks.peers.llama_programs import CONTEXT, LlamaPrograms
from benchmarks.peers.server_contender import SERVED_NAME, ServerContender, free_port
from benchmarks.peers.work import Work
from benchmarks.peers.worker_contender import WorkerContender
from qwen3_ray import __version__

OURS = "qwen3-ray"
PEERS = ("llama.cpp", "openvino", "vllm", "transformers")
WEIGHTS = {OURS: "fp16", "llama.cpp": "f16", "openvino": "fp16", "vllm": "fp32",
           "transformers": "fp32"}  # fmt: skip
"""How each holds its weights on a CPU without bf16."""
SERVERS = (OURS, "llama.cpp", "vllm")
MAX_NUM_SEQS = "16"


@dataclass(frozen=True, slots=True)
class Lineup:
    """Makes the contenders of one run."""

    work: Work
    model_dir: Path

    def offline(self, name: str) -> Contender:
        """Measured without a server."""
        if name == "llama.cpp":
            return LlamaPrograms(name, self.work)
        is_ours = name == OURS
        return WorkerContender(
            name,
            self.work,
            python=Path(sys.executable) if is_ours else places.environment_python(name),
            module="ours_worker" if is_ours else f"{name}_worker",
            model_dir=places.OPENVINO_MODEL_DIR if name == "openvino" else self.model_dir,
            environment=_vllm_environment() if name == "vllm" else None,
        )

    def server(self, name: str) -> Contender:
        """Behind HTTP."""
        if name == OURS:
            return ServerContender(name, self.work, version=__version__, command=self._serve)
        if name == "llama.cpp":
            version = places.LLAMA_SDIST.partition("==")[2]
            extra = {"cache_prompt": False}
            return ServerContender(
                name, self.work, version=version, command=_llama_server, extra=extra
            )
        version = places.PACKAGES["vllm"][0].partition("==")[2]
        return ServerContender(
            name,
            self.work,
            version=version,
            command=self._vllm_server,
            environment=_vllm_environment(),
        )

    def _serve(self, port: int) -> Sequence[str]:
        """The whole cluster on this machine. No prompt lookup: see `workers.ours_worker`."""
        return [
            sys.executable, "-m", "cluster", "serve", "--model", str(self.model_dir),
            "--served-model-name", SERVED_NAME, "--tensor-parallel-size", "1",
            "--max-model-len", str(self.work.max_model_len), "--num-speculative-tokens", "0",
            "--http-port", str(port), "--grpc-port", str(free_port()),
        ]  # fmt: skip

    def _vllm_server(self, port: int) -> Sequence[str]:
        length = str(self.work.max_model_len)
        return [
            str(places.environment_python("vllm")), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(self.model_dir), "--served-model-name", SERVED_NAME,
            "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port),
            "--max-model-len", length, "--max-num-seqs", MAX_NUM_SEQS,
            "--max-num-batched-tokens", length, "--no-enable-prefix-caching",
            "--disable-log-stats",
        ]  # fmt: skip


def is_installed(name: str) -> bool:
    """Whether `make bench-peers` got this peer to work."""
    if name == "llama.cpp":
        programs = (places.LLAMA_BIN / program for program in places.LLAMA_PROGRAMS)
        return places.GGUF_FILE.exists() and all(program.exists() for program in programs)
    if name == "openvino" and not (places.OPENVINO_MODEL_DIR / "openvino_model.xml").exists():
        return False
    return name == OURS or places.is_ready(name)


def _llama_server(port: int) -> Sequence[str]:
    threads = str(os.cpu_count() or 1)
    return [
        str(places.LLAMA_BIN / "llama-server"), "-m", str(places.GGUF_FILE), "--alias", SERVED_NAME,
        "--host", "127.0.0.1", "--port", str(port), "-np", MAX_NUM_SEQS, "-c", str(CONTEXT),
        "-b", "2048", "-ub", "512", "-fa", "1", "-t", threads, "-tb", threads, "--no-ui",
        "--cache-ram", "0",
    ]  # fmt: skip


def _vllm_environment() -> dict[str, str]:
    """2 GiB of KV cache, all cores, no calls home; the allocator and OpenMP that vLLM advises."""
    directory = places.environment_dir("vllm")
    preload = [
        *Path("/usr/lib/x86_64-linux-gnu").glob("libtcmalloc_minimal.so.4"),
        *directory.glob("lib/libiomp5.so"),
    ]
    return {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{directory / 'bin'}:{os.environ.get('PATH', '')}",
        **({"LD_PRELOAD": ":".join(map(str, preload))} if preload else {}),
    }
