"""The half of the GPU check that says right or wrong, on this machine's GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STAGES = "device,checkpoints,correctness"


@pytest.mark.gpu
@pytest.mark.timeout(400)
def test_the_model_is_right_on_this_gpu(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks.gpu_check", "--device", "cuda", "--stages", STAGES,
        "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    stages = {stage["name"]: stage for stage in json.loads(path.read_text())["stages"]}
    assert list(stages) == STAGES.split(",")
    assert all(check["passed"] for stage in stages.values() for check in stage["checks"])
    # Exact mode and graphs are for GPUs: here none of it may be left out.
    assert not [name for name in stages["correctness"]["skipped"] if "fast" not in name]
