"""OpenVINO GenAI's continuous batching, with the KV precision that it chooses itself."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers.workers.protocol import Generate, of_steps, serve

KV_CACHE_GB = 2
MAX_NUM_SEQS = 16


def load(model_dir: Path, max_model_len: int) -> Generate:
    """See `protocol.Load`; the directory holds the exported model."""
    scheduling = openvino_genai.SchedulerConfig()
    scheduling.cache_size = KV_CACHE_GB
    scheduling.max_num_batched_tokens = max_model_len
    scheduling.max_num_seqs = MAX_NUM_SEQS
    scheduling.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(model_dir), scheduling, "CPU", {})

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        handles = [
            pipeline.add_request(index, openvino.Tensor(np.array([prompt], np.int64)), config)
            for index, prompt in enumerate(prompts)
        ]
        stamps = []
        while pipeline.has_non_finished_requests():
            pipeline.step()
            stamps.append(time.perf_counter())
        if any(len(handle.read_all()[0].generated_ids) != num_tokens for handle in handles):
            raise RuntimeError("an output has another length than it should")
        return of_steps(stamps, len(prompts), num_tokens)

    return generate


if __name__ == "__main__":
    serve(load, openvino_genai.__version__)
