"""Whether the engine is right on this GPU, and how near it comes to what the GPU can do.

    make gpu-check
    python -m benchmarks.gpu_check --device cpu --interpret      correctness, without a GPU

At most nine minutes, five on a CPU; one process, and another for the rest if the GPU fails it.
Needs torch, triton, transformers, safetensors, tokenizers and numpy; pytest and hypothesis for the
kernels' own tests. Each stage has its share of the time; one that fails does not keep the others
from running, but makes the exit status 1. Figures are stored as they are found under
benchmarks/results/, named after date, commit and device; tables are printed last.

On a CPU, models are tiny and stages that only measure are left out unless they are named. With
`--interpret` Triton's kernels run in its interpreter, without it plain torch takes their place.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.gpu.supervisor import supervise

RESULTS_DIR = Path("benchmarks/results")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--interpret", action="store_true", help="Triton's kernels on a CPU")
    parser.add_argument("--stages", help="some, by name, separated by commas")
    parser.add_argument("--seconds", type=float, help="for all stages together")
    parser.add_argument("--commit", help="where git does not know it")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR, help="directory")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # the supervisor's
    parser.add_argument("--ended", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is None:
        sys.exit(supervise([sys.executable, "-m", "benchmarks.gpu_check", *sys.argv[1:]]))
    if options.interpret:
        if options.device == "cuda":
            parser.error("--interpret is for the CPU")
        options.device = "cpu"
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.gpu.run import run  # noqa: PLC0415 - Triton reads the environment as it loads

    is_good = run(
        device=options.device,
        interpret=options.interpret,
        names=options.stages.split(",") if options.stages else None,
        seconds=options.seconds,
        commit=options.commit,
        out=options.out,
        work=options.work,
        ended=options.ended,
    )
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
