"""The ranks of an engine: rank 0 as an `Engine`, the others as a loop that obeys it.

`python -m qwen3_ray.engine.rank` runs one of the others for `LLM`, as long as its parent lives.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from qwen3_ray.config import EngineConfig
from qwen3_ray.distributed.control import Kind, StepArrays, group_errors
from qwen3_ray.distributed.tp_group import TPGroup
from qwen3_ray.engine.engine import Engine
from qwen3_ray.engine.fingerprint import architecture_name, numerics_fingerprint
from qwen3_ray.engine.graphs import build_graphs
from qwen3_ray.engine.group_executor import GroupExecutor
from qwen3_ray.engine.progress import LoadProgress, OnProgress
from qwen3_ray.engine.rendezvous import Rendezvous
from qwen3_ray.engine.run_ahead import NUM_LOOKAHEAD_TOKENS
from qwen3_ray.engine.startup import Rank, start_rank
from qwen3_ray.engine.stats import EngineInfo
from qwen3_ray.errors import Qwen3RayError, RequestError
from qwen3_ray.model.weights import weights_manifest
from qwen3_ray.runner.sampler import Sampler
from qwen3_ray.text.grammar import GrammarCompiler
from qwen3_ray.text.tokenizer import Tokenizer, find_tokenizer

__all__ = ["LoadProgress", "build_engine", "serve_rank"]


def _ignore(_progress: LoadProgress) -> None:
    pass


def build_engine(
    config: EngineConfig,
    *,
    rendezvous_dir: Path,
    on_progress: OnProgress = _ignore,
    check_peers: Callable[[], None] = lambda: None,
    may_share_gpus: bool = False,
    on_group: Callable[[TPGroup], None] = lambda _: None,
) -> Engine:
    """Build rank 0 and the engine around it, in the thread that will run its steps.

    Blocks until all ranks are ready and every kernel is compiled.

    Args:
        config: the same on every rank.
        rendezvous_dir: private to these ranks, empty, on a file system that they share.
        on_progress: called in this thread.
        check_peers: called while waiting for the other ranks; raises if one will not come.
        may_share_gpus: see `Rendezvous`; the same on every rank.
        on_group: see `Rendezvous`; called in this thread.

    Raises:
        ConfigError: the settings cannot work with this model, checkpoint or machine.
        EngineError: another rank did not come, or is gone.
    """
    rendezvous = Rendezvous(
        rank=0,
        size=config.tensor_parallel_size,
        directory=rendezvous_dir,
        check_peers=check_peers,
        may_share_gpus=may_share_gpus,
        on_group=on_group,
    )
    rank = start_rank(config, rendezvous, on_progress)
    tokenizer = None if config.skip_tokenizer_init else find_tokenizer(config.model_dir)
    grammars = _grammars(tokenizer, rank)
    num_valid_token_ids = _num_valid_token_ids(tokenizer, rank)
    sampler = Sampler(
        num_valid_token_ids=num_valid_token_ids,
        device=rank.device,
        eos_token_ids=rank.model_config.eos_token_ids,
        grammars=grammars,
    )
    graphs = build_graphs(rank, config, num_valid_token_ids)
    executor = GroupExecutor(
        control=rank.control,
        runner=rank.runner,
        sampler=sampler,
        num_blocks=rank.num_blocks,
        block_size=rank.kv_layout.block_size,
        graphs=graphs,
    )
    executor.warm_up()
    on_progress(LoadProgress("ready"))
    return Engine(
        executor,
        _engine_info(config, rank, sampler.method),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.num_tokens_of_a_step(rank.device.type),
        enable_prefix_caching=config.enable_prefix_caching,
        num_speculative_tokens=_num_speculative_tokens(config, rank),
        num_lookahead_tokens=0 if graphs is None else NUM_LOOKAHEAD_TOKENS,
        grammars=grammars,
    )


def serve_rank(
    config: EngineConfig,
    rank: int,
    *,
    rendezvous_dir: Path,
    on_progress: OnProgress = _ignore,
    may_share_gpus: bool = False,
) -> None:
    """Build one of the ranks 1 and up and compute what rank 0 says, until it says stop.

    Raises:
        ConfigError: as in `build_engine`.
        EngineError: rank 0 or another rank is gone.
    """
    rendezvous = Rendezvous(
        rank=rank,
        size=config.tensor_parallel_size,
        directory=rendezvous_dir,
        may_share_gpus=may_share_gpus,
    )
    parts = start_rank(config, rendezvous, on_progress)
    graphs = build_graphs(parts, config, num_valid_token_ids=0)
    on_progress(LoadProgress("ready"))
    while True:
        kind, work = parts.control.receive()
        if kind is Kind.STOP:
            parts.stream.mark()()  # what is queued reads this process's memory, on every rank
            del graphs  # before the group: NCCL waits for the end of graphs that hold its kernels
            return
        with group_errors("a step failed"):
            if isinstance(work, StepArrays):
                parts.runner.execute(work)
            elif work is not None and graphs is not None:
                graphs.follow(work)


def _num_speculative_tokens(config: EngineConfig, rank: Rank) -> int:
    """Drafts are lossless in exact mode; elsewhere a row's bits may change with its batch.

    Steps with drafts are not captured, so where others are, drafts are for who asks for them.
    """
    if config.num_speculative_tokens is not None:
        return config.num_speculative_tokens
    return 4 if rank.exact and not rank.model.can_capture else 0


def _num_valid_token_ids(tokenizer: Tokenizer | None, rank: Rank) -> int:
    """Models have more logits than their tokenizer has tokens; those mean nothing."""
    vocab_size = rank.model_config.vocab_size
    return vocab_size if tokenizer is None else min(tokenizer.num_tokens, vocab_size)


def _grammars(tokenizer: Tokenizer | None, rank: Rank) -> GrammarCompiler | None:
    """What compiles the forms of outputs; forms are of text, so a model without text has none."""
    if tokenizer is None:
        return None
    config = rank.model_config
    grammars = GrammarCompiler(tokenizer, config.eos_token_ids, config.vocab_size)
    with suppress(RequestError):  # without the library, each request with a form is refused
        grammars.load()
    return grammars


def _engine_info(config: EngineConfig, rank: Rank, sampling: str) -> EngineInfo:
    layout = rank.kv_layout
    fingerprint = numerics_fingerprint(
        {
            "weights": weights_manifest(config.model_dir),
            "dtype": config.dtype,
            "kv_cache_dtype": str(layout.dtype),
            "tensor_parallel_size": config.tensor_parallel_size,
            "block_size": layout.block_size,
            "kernels": rank.model.kernel_names,
            "exact": rank.exact,
            "sampling": sampling,
            "architecture": architecture_name(rank.device),
        }
    )
    return EngineInfo(
        model_name=config.model_dir.name,
        numerics_fingerprint=fingerprint,
        exact=rank.exact,
        block_size=layout.block_size,
        max_model_len=rank.max_model_len,
        vocab_size=rank.model_config.vocab_size,
        tensor_parallel_size=config.tensor_parallel_size,
        eos_token_ids=rank.model_config.eos_token_ids,
        weight_bytes_read=rank.weight_bytes_read,
    )


def config_to_json(config: EngineConfig) -> str:
    """For the command line of a child; the opposite of `config_from_json`."""
    return json.dumps(asdict(config) | {"model_dir": str(config.model_dir)})


def config_from_json(text: str) -> EngineConfig:
    """The config that `config_to_json` wrote."""
    values = json.loads(text)
    return EngineConfig(**values | {"model_dir": Path(values["model_dir"])})


def _exit_with_parent() -> None:
    """End this process, whatever it does, once the pipe that is its stdin closes."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


def main() -> int:
    """Run one rank as a child process; the exit status is 1 when it failed."""
    parser = argparse.ArgumentParser(prog="qwen3_ray.engine.rank")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--rendezvous-dir", type=Path, required=True)
    parser.add_argument("--config", type=config_from_json, required=True)
    args = parser.parse_args()
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()
    try:
        serve_rank(args.config, args.rank, rendezvous_dir=args.rendezvous_dir)
    except Exception as error:
        known = isinstance(error, Qwen3RayError)
        sys.stderr.write(f"rank {args.rank}: {error}\n" if known else traceback.format_exc())
        sys.stderr.flush()
        # Now, not after an interpreter's slow end: rank 0 will look for an ended process.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
