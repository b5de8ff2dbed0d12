"""What `qwen3-ray` says and how it ends when it cannot do what it was asked to."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwen3_ray.config import DEMO_MODEL_DIR
from tests.integration.server import free_ports, run_command

LIMIT_S = 90.0

RAY_SCRIPT = """
import sys, ray
from cluster.ops.local_ray import own_ray
with own_ray(2):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


def _assert_refused(result: subprocess.CompletedProcess[str], message: str) -> None:
    """One line that begins with `error:` ends stderr, and the exit code blames a setting."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == result.stderr.splitlines()[-1:], result.stderr
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert result.returncode == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "/no/such/dir"), "error: model = '/no/such/dir': no such directory"),
        (("--tensor-parallel-size", "3"), "tensor_parallel_size = 3: must divide the 8 query"),
        (("--max-model-len", "32769"), "error: max_model_len = 32769: the model has a context"),
        (("--http-port", "0"), "error: http_port = 0: "),
        (("--ray-address", "127.0.0.1:1"), "error: ray_address = '127.0.0.1:1': nobody listens"),
        (("--config", "/no/such/file"), "error: config = '/no/such/file': cannot be read"),
    ],
)
def test_a_setting_that_cannot_work_is_found_before_anything_starts(
    environment: dict[str, str], flags: tuple[str, ...], message: str
) -> None:
    _assert_refused(run_command(environment, "serve", *flags), message)


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_named(environment: dict[str, str], flag: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = run_command(environment, "serve", flag, str(port))
    _assert_refused(result, f"error: {flag[2:].replace('-', '_')} = {port}: is in use")


def test_a_truncated_checkpoint_ends_the_command_with_its_file_and_tensor(
    environment: dict[str, str], tmp_path: Path
) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_DIR, model_dir)
    os.truncate(model_dir / "model.safetensors", 3_000_000)
    ports = [str(port) for port in free_ports(2)]
    flags = ("--model", str(model_dir), "--http-port", ports[0], "--grpc-port", ports[1])
    result = run_command(environment, "serve", *flags)
    _assert_refused(result, "error: model = 'model.safetensors (tensor ")
    assert "truncated" in result.stderr
    assert list(Path(environment["TMPDIR"]).iterdir()) == []


def test_a_cluster_without_room_is_told_what_is_needed_before_it_is_touched(
    environment: dict[str, str],
) -> None:
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    with _ray_of_two_cpus(environment) as address:
        on_cpu = run_command(environment, "serve", "--ray-address", address, "--num-replicas", "3")
        on_cuda = run_command(environment, "serve", "--ray-address", address, "--device", "cuda")
    _assert_refused(on_cpu, "needs 6.3 CPUs and 0 GPUs for 3 replica(s)")
    _assert_refused(on_cuda, "needs 2.1 CPUs and 2 GPUs for 1 replica(s)")
    for result in (on_cpu, on_cuda):
        assert "present: 2 CPUs and 0 GPUs on 1 machine(s)" in result.stderr


@contextmanager
def _ray_of_two_cpus(environment: dict[str, str]) -> Iterator[str]:
    """Address of a Ray that runs while the block does."""
    with subprocess.Popen(
        [sys.executable, "-c", RAY_SCRIPT],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0
