"""A front never loads torch: it answers while its ranks are busy, and stays small."""

import subprocess
import sys


def test_torch_stays_out_of_the_front() -> None:
    code = "import sys, cluster.replica.front; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
