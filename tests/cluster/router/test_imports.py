"""Routers start fast and small: nothing they import loads torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["cluster.router.router", "cluster.ingress.http_api", "cluster.ingress.grpc_api"],
)
def test_torch_stays_out(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_deployment_loads_ray_but_not_torch() -> None:
    code = "import sys, cluster.ingress.server; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
