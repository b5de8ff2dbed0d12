"""Guards what was won: speeds against references of the same run must not fall.

    make bench-check
    python -m benchmarks.bench_check --update      # after a gain, on a quiet machine

Each check is a ratio of two times that are taken in turns in this process, never a time: of our
products against FBGEMM's, of a prompt's attention against torch's own on contiguous keys and
values, of running requests' attention against a loop that adds up as many bytes, of all layers in
one call against one by one. A ratio may lie a quarter below the one in `baseline.json`:
machines differ and are shared. Half a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import qwen3_ray  # noqa: F401 - before torch: its idle threads sleep then  # isort: skip
import torch
import torch.nn.functional as F

from benchmarks import attention_speed, fusion, linear_speed
from qwen3_ray.attention.base import AttentionMetadata, allocate_kv_caches
from qwen3_ray.attention.numba_paged import NumbaPagedAttention
from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.cpu.thread_pool import ThreadPool
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.model.model_config import ModelConfig
from qwen3_ray.model.weights import load_model
from qwen3_ray.testing_models import engine_config

BASELINE = Path(__file__).parent / "baseline.json"
TOLERANCE = 0.75
"""Of the stored ratio, at least."""
NUM_ROUNDS = 9
SHAPE = (1_024, 4_096)
ROW_COUNTS = (1, 8, 16, 128)
BATCHES = (1, 16)
PROMPT_LEN, DECODES, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 512, 16, 16, 8, 128, 32


def measure() -> dict[str, float]:
    """Every check's ratio, rounded."""
    with torch.inference_mode():
        ratios = _products() | _prompt_attention() | _decode_attention() | _layers()
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def regressions(measured: Mapping[str, float], baseline: Mapping[str, float]) -> list[str]:
    """What is too slow, in words; a check that has no baseline is told as well."""
    problems = []
    for name, ratio in measured.items():
        stored = baseline.get(name)
        if stored is None:
            problems.append(f"{name}: no baseline, run with --update")
        elif ratio < TOLERANCE * stored:
            problems.append(f"{name}: {ratio:.2f}, was {stored:.2f}")
    return problems


def _products() -> dict[str, float]:
    pool = ThreadPool(torch.get_num_threads())
    ours, theirs = linear_speed.make_products(*SHAPE, pool, linear_speed.WEIGHT_BYTES)
    return {
        f"product of {num_rows} rows against FBGEMM": linear_speed.compare(
            ours, theirs, torch.randn(num_rows, SHAPE[0]), NUM_ROUNDS
        ).times
        for num_rows in ROW_COUNTS
    }


def _prompt_attention() -> dict[str, float]:
    backend = NumbaPagedAttention(ThreadPool(torch.get_num_threads()))
    num_blocks = PROMPT_LEN // BLOCK_SIZE
    (cache,) = allocate_kv_caches(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
        panels=True,
    )
    q = torch.randn(PROMPT_LEN, NUM_HEADS, HEAD_DIM)
    k, v = torch.randn(2, PROMPT_LEN, NUM_KV_HEADS, HEAD_DIM)
    metadata = AttentionMetadata(
        query_start_loc=torch.tensor([0, PROMPT_LEN], dtype=torch.int32),
        seq_lens=torch.tensor([PROMPT_LEN], dtype=torch.int32),
        block_tables=torch.arange(num_blocks, dtype=torch.int32)[None],
        slot_mapping=torch.arange(PROMPT_LEN, dtype=torch.int32),
        block_size=BLOCK_SIZE,
    )
    backend.write_kv(k, v, cache, metadata)
    heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
    ratio = _ratio(
        lambda: backend.attend(q, cache, metadata),
        lambda: F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True),
    )
    return {f"attention of a prompt of {PROMPT_LEN} against torch": ratio}


def _decode_attention() -> dict[str, float]:
    decodes = attention_speed.make_decodes(
        DECODES, PROMPT_LEN, torch.float16, num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS
    )
    ratio = _ratio(decodes.attend, decodes.read)
    return {f"attention of {DECODES} streams of {PROMPT_LEN}, halves, against a plain loop": ratio}


def _layers() -> dict[str, float]:
    config = engine_config(DEMO_MODEL_DIR)
    fused = load_model(config, ModelConfig.from_dir(DEMO_MODEL_DIR), TPGroup.single())
    ratios = {}
    for batch in BATCHES:
        together, apart = fusion.medians((fused, fused.unfused()), batch, 1, 5 * NUM_ROUNDS)
        ratios[f"demo model's layers in one call, {batch} streams"] = apart / together
    return ratios


def _ratio(ours: Callable[[], object], reference: Callable[[], object]) -> float:
    """The reference's time over ours, medians of turns."""
    own, other = attention_speed.medians((ours, reference), NUM_ROUNDS)
    return other / own


def main() -> None:
    """Print the ratios; exit with 1 if one has fallen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="store what is measured now")
    args = parser.parse_args()
    measured = measure()
    for name, ratio in measured.items():
        print(f"{ratio:6.2f}  {name}")
    if args.update:
        BASELINE.write_text(json.dumps(measured, indent=2) + "\n")
        return
    problems = regressions(measured, json.loads(BASELINE.read_text()))
    for problem in problems:
        print(f"too slow: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
