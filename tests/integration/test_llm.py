"""`LLM` on the bundled demo model: one rank, and two ranks of which one is a real child process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qwen3_ray import LLM, RequestOutput, SamplingParams
from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    PromptTooLongError,
    RequestError,
)
from qwen3_ray.text.tokenizer import Tokenizer

DEADLINE_S = 30.0

PROMPTS = [
    "It is a truth universally acknowledged, that",
    "Once upon a time there was",
    "The whale",
    "In the beginning",
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having",
    "To be, or not to be",
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """Small steps and little KV cache: chunked prompts and preemption are the rule."""
    with LLM(
        max_model_len=128,
        max_num_seqs=16,
        max_num_batched_tokens=24,
        kv_cache_memory=12 * 2 * 6 * 32 * 4 * 32 * 4,  # 12 blocks
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def pair() -> Iterator[LLM]:
    with LLM(tensor_parallel_size=2, max_model_len=256, max_num_seqs=8) as llm:
        yield llm


def greedy(max_tokens: int, **settings: bool | str) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **settings)  # type: ignore[arg-type]


def mixed_requests() -> tuple[list[str], list[SamplingParams]]:
    """16 requests: greedy and seeded, short and long, plain and cut off."""
    prompts = [" ".join([PROMPTS[i % len(PROMPTS)]] * (1 + i % 3)) for i in range(16)]
    params = [
        SamplingParams(
            temperature=0 if i % 2 else 0.9,
            top_k=20 if i % 4 == 0 else 0,
            top_p=0.9 if i % 3 == 0 else 1.0,
            seed=i,
            max_tokens=8 + 3 * i,
            ignore_eos=True,
        )
        for i in range(16)
    ]
    return prompts, params


def tokens_of(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_greedy_tokens_are_those_of_transformers(llm: LLM) -> None:
    """Up to the first position where the oracle itself hesitates; nearly all are compared."""
    oracle = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32)
    num_compared = num_positions = 0
    for output in llm.generate(PROMPTS, greedy(40, ignore_eos=True)):
        token_ids = output.outputs[0].token_ids
        context = torch.tensor([output.prompt_token_ids + token_ids[:-1]])
        with torch.inference_mode():
            logits = oracle(context).logits[0, len(output.prompt_token_ids) - 1 :]
        top = logits.topk(2)
        margins = (top.values[:, 0] - top.values[:, 1]).tolist()
        unsure = next((i for i, margin in enumerate(margins) if margin < 1e-3), len(margins))
        assert token_ids[:unsure] == top.indices[:unsure, 0].tolist()
        num_compared += unsure
        num_positions += len(token_ids)
    assert num_positions == 40 * len(PROMPTS)
    assert num_compared >= 0.9 * num_positions


def test_requests_get_what_they_get_alone(llm: LLM) -> None:
    prompts, params = mixed_requests()
    alone = [llm.generate(prompt, one)[0] for prompt, one in zip(prompts, params, strict=True)]
    before = llm.stats.num_preemptions
    together = llm.generate(prompts, params)
    assert llm.info.exact
    assert tokens_of(together) == tokens_of(alone)
    assert [o.outputs[0].text for o in together] == [o.outputs[0].text for o in alone]
    assert [len(ids) for ids in tokens_of(together)] == [one.max_tokens for one in params]
    assert llm.stats.num_preemptions > before
    assert llm.stats.kv_cache_usage == 0


def test_an_answer_has_the_shape_of_vllms(llm: LLM) -> None:
    text, ids = PROMPTS[1], Tokenizer.load(DEMO_MODEL_DIR).encode(PROMPTS[1])
    by_text, by_ids = llm.generate([text, {"prompt_token_ids": ids}], greedy(6))
    assert (by_text.prompt, by_ids.prompt) == (text, None)
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == ids
    (answer,) = by_text.outputs
    assert answer == by_ids.outputs[0]
    assert (answer.index, answer.finish_reason, answer.stop_reason) == (0, "length", None)
    assert len(answer.token_ids) == 6
    assert answer.text == Tokenizer.load(DEMO_MODEL_DIR).decode(answer.token_ids)


def test_a_stop_string_ends_the_answer_before_it(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[0], greedy(30))[0].outputs[0]
    stop = whole.text[10:14]
    cut = llm.generate(PROMPTS[0], greedy(30, stop=stop))[0].outputs[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) < 30


def test_a_stop_token_ends_the_answer_and_is_named(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[0], greedy(20))[0].outputs[0].token_ids
    params = SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[whole[5]])
    answer = llm.generate(PROMPTS[0], params)[0].outputs[0]
    assert answer.token_ids == whole[: whole.index(whole[5]) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", whole[5])


def test_a_stream_joins_to_the_whole_answer_and_can_be_left(llm: LLM) -> None:
    params = SamplingParams(seed=4, max_tokens=20, ignore_eos=True)
    whole = llm.generate(PROMPTS[2], params)[0].outputs[0]
    pieces = list(llm.stream(PROMPTS[2], params))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [i for piece in pieces for i in piece.token_ids] == whole.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    left = llm.stream(PROMPTS[2], SamplingParams(seed=4, max_tokens=100, ignore_eos=True))
    assert next(left).token_ids == whole.token_ids[:1]
    left.close()  # type: ignore[attr-defined]
    wait_until(lambda: llm.stats.num_running == 0)


def test_several_threads_may_generate_at_once(llm: LLM) -> None:
    expected = tokens_of(llm.generate(PROMPTS, greedy(12)))
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        outputs = pool.map(lambda prompt: llm.generate(prompt, greedy(12)), PROMPTS)
        assert [tokens_of(output)[0] for output in outputs] == expected


def test_a_seed_is_drawn_anew_for_every_request_without_one(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8)
    first, second = tokens_of(llm.generate([PROMPTS[0]] * 2, params))
    assert first != second
    seeded = SamplingParams(max_tokens=8, seed=1)
    assert tokens_of(llm.generate(PROMPTS[0], seeded)) == tokens_of(
        llm.generate(PROMPTS[0], seeded)
    )


def test_requests_that_cannot_be_served_leave_the_rest_in_peace(llm: LLM) -> None:
    with pytest.raises(PromptTooLongError):
        llm.generate({"prompt_token_ids": [1] * 128}, greedy(1))
    with pytest.raises(RequestError, match="max_tokens: is 9"):
        llm.generate(["ok", {"prompt_token_ids": [1] * 120}], greedy(9))
    with pytest.raises(RequestError, match="from 0 to 4095"):
        llm.generate({"prompt_token_ids": [4096]}, greedy(1))
    with pytest.raises(RequestError, match="at least one token"):
        llm.stream("", greedy(1))
    with pytest.raises(RequestError, match="2 of them for 1 prompts"):
        llm.generate(["ok"], [greedy(1)] * 2)
    assert len(llm.generate("ok", greedy(3))[0].outputs[0].token_ids) == 3
    assert llm.generate([], greedy(1)) == []


def test_a_checkpoint_without_a_tokenizer_serves_ids(tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(DEMO_MODEL_DIR / name)
    with LLM(tmp_path, max_model_len=64) as llm:
        assert llm.tokenizer is None
        answer = llm.generate({"prompt_token_ids": [1, 2, 3]}, greedy(5))[0].outputs[0]
        assert (answer.text, len(answer.token_ids)) == ("", 5)
        with pytest.raises(RequestError, match="no tokenizer"):
            llm.generate("text", greedy(5))
        with pytest.raises(RequestError, match="stop: needs a tokenizer"):
            llm.generate({"prompt_token_ids": [1]}, greedy(5, stop="x"))
    with pytest.raises(EngineError, match="ended: stopped"):
        llm.generate({"prompt_token_ids": [1]}, greedy(5))


def test_settings_that_cannot_work_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"= 3.*8 query heads"):
        LLM(tensor_parallel_size=3)
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        LLM(kv_cache_memory=1_000_000)
    with pytest.raises(ConfigError, match="context of 32768"):
        LLM(max_model_len=40_000)


def test_two_ranks_give_what_they_give_alone(pair: LLM) -> None:
    assert (pair.info.tensor_parallel_size, len(pair.rank_pids)) == (2, 1)
    prompts, params = mixed_requests()
    alone = [
        pair.generate(prompt, one)[0]
        for prompt, one in list(zip(prompts, params, strict=True))[::3]
    ]
    assert tokens_of(pair.generate(prompts, params)[::3]) == tokens_of(alone)


def test_a_rank_that_is_killed_ends_the_answer_in_seconds_and_leaves_no_orphan() -> None:
    num_threads = count_step_threads()
    with LLM(tensor_parallel_size=2, max_model_len=2048) as llm:
        (child,) = llm.rank_pids
        stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=2000, ignore_eos=True))
        for _ in range(3):
            next(stream)
        os.kill(child, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(EngineError, match="rank 1 was killed by SIGKILL"):
            list(stream)
        with pytest.raises(EngineError, match="rank 1 was killed by SIGKILL"):
            llm.generate(PROMPTS[0])
        assert time.monotonic() - started < 10
    assert not psutil.pid_exists(child)
    assert count_step_threads() == num_threads


def test_a_child_leaves_when_its_parent_is_gone(tmp_path: Path) -> None:
    """The parent is killed, so nobody tells the child; it waits for rank 0, which never comes."""
    code = (
        "import time; from pathlib import Path\n"
        "from qwen3_ray.config import DEMO_MODEL_DIR, EngineConfig\n"
        "from qwen3_ray.engine.children import RankProcesses\n"
        "config = EngineConfig(model_dir=DEMO_MODEL_DIR, tensor_parallel_size=2)\n"
        f"ranks = RankProcesses(config, Path({str(tmp_path)!r}))\n"
        "print(ranks.pids[0], flush=True); time.sleep(100)"
    )
    parent = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until((tmp_path / "store").exists)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not child.is_running())


def test_a_rank_that_fails_to_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(EngineError, match="rank 1 ended with exit status"):
        LLM(tensor_parallel_size=2, max_model_len=64)


def test_weights_that_are_damaged_for_one_rank_are_told_by_that_rank(tmp_path: Path) -> None:
    """Rank 1 alone reads the second half of the columns; rank 0 waits for it in a collective."""
    (tmp_path / "config.json").symlink_to(DEMO_MODEL_DIR / "config.json")
    tensors = load_file(DEMO_MODEL_DIR / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    tensors[name][0, -1] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match=rf"rank 1 ended with exit status 1: .*{name}"):
        LLM(tmp_path, tensor_parallel_size=2, max_model_len=64)


def count_step_threads() -> int:
    return sum(thread.name == "engine-step" for thread in threading.enumerate())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
