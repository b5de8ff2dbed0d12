"""The values that users and processes hand over: their ranges, and that pickling keeps them."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from qwen3_ray import errors
from qwen3_ray.config import DEMO_MODEL_DIR, EngineConfig, Numerics
from qwen3_ray.errors import (
    CheckpointError,
    ConfigError,
    DeadlineExceededError,
    EngineError,
    ModelNotFoundError,
    OverloadedError,
    PromptTooLongError,
    Qwen3RayError,
    RequestAbortedError,
    RequestError,
    ResourcesError,
    UnavailableError,
)
from qwen3_ray.request import FinishReason, GenerateRequest, TokenDelta, Usage
from qwen3_ray.sampling_params import MAX_SEED, MIN_SEED, SamplingParams

ERRORS = [
    Qwen3RayError("broken"),
    ConfigError("block_size", 0, "must be at least 1"),
    ResourcesError("num_cpus", 1, "needs 3"),
    CheckpointError(Path("model/a.safetensors"), "is cut off", tensor="lm_head.weight"),
    CheckpointError("model/config.json", "does not exist"),
    RequestError("top_p", "must be positive"),
    RequestError(None, "cannot be read"),
    ModelNotFoundError("model", "'x' is not served here"),
    PromptTooLongError("prompt", "has 9 tokens"),
    OverloadedError("full", retry_after_s=2.5),
    UnavailableError("no replica"),
    DeadlineExceededError("too late"),
    RequestAbortedError("cancelled"),
    EngineError("step 3 failed"),
]


def test_the_list_above_has_every_error_class() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Qwen3RayError)
    }
    assert {type(error) for error in ERRORS} == classes


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_with_all_it_says(error: Qwen3RayError, protocol: int) -> None:
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_errors_name_what_is_wrong() -> None:
    assert str(ERRORS[1]) == "block_size = 0: must be at least 1"
    assert str(ERRORS[3]) == ("model = 'model/a.safetensors (tensor lm_head.weight)': is cut off")
    assert str(ERRORS[5]) == "top_p: must be positive"
    assert str(ERRORS[6]) == "cannot be read"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", 2),
        ("top_p", 1e-9),
        ("top_p", 1),
        ("top_k", -1),
        ("top_k", 0),
        ("top_k", 1),
        ("max_tokens", None),
        ("max_tokens", 1),
        ("seed", None),
        ("seed", MIN_SEED),
        ("seed", MAX_SEED),
        ("stop", "x"),
        ("stop", ["x" * 64] * 16),
        ("stop", ()),
        ("stop_token_ids", [0]),
        ("max_tokens", 0),
        ("min_p", 0),
        ("min_p", 1),
        ("presence_penalty", -2),
        ("frequency_penalty", 2),
        ("repetition_penalty", 1e-3),
        ("logit_bias", {0: -100.0, 5: 100.0}),
        ("min_tokens", 16),
        ("n", 8),
        ("bad_words", ["x" * 64] * 100),
        ("allowed_token_ids", [0]),
        ("logprobs", 0),
        ("prompt_logprobs", 20),
    ],
)
def test_sampling_params_take_the_whole_range(name: str, value: object) -> None:
    arguments: dict[str, Any] = {name: value}
    SamplingParams(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", math.nan, "from 0 to 2, got nan"),
        ("temperature", math.inf, "from 0 to 2, got inf"),
        ("temperature", -0.1, "from 0 to 2, got -0.1"),
        ("temperature", 2.1, "from 0 to 2, got 2.1"),
        ("temperature", 10**400, "from 0 to 2, got 1000"),
        ("repetition_penalty", 10**400, "finite"),
        ("top_p", math.nan, "from 0 to 1, got nan"),
        ("top_p", 0.0, "greater than 0"),
        ("top_p", -0.5, "from 0 to 1, got -0.5"),
        ("top_p", 1.5, "from 0 to 1, got 1.5"),
        ("top_k", -2, "got -2"),
        ("max_tokens", -1, "not be negative, got -1"),
        ("seed", MAX_SEED + 1, "signed 64-bit"),
        ("seed", MIN_SEED - 1, "signed 64-bit"),
        ("stop", "", "1 to 64 characters, got ''"),
        ("stop", ["ok", ""], "1 to 64 characters, got ''"),
        ("stop", "x" * 65, "1 to 64 characters"),
        ("stop", ["x"] * 17, "at most 16 strings, got 17"),
        ("stop", [5], "must be a string"),
        ("stop", "\ud83c", "Unicode"),
        ("stop_token_ids", [3, -1], "must not be negative, got -1"),
        ("min_p", 1.1, "from 0 to 1, got 1.1"),
        ("min_p", math.nan, "from 0 to 1, got nan"),
        ("presence_penalty", 2.1, "from -2 to 2, got 2.1"),
        ("frequency_penalty", -math.inf, "from -2 to 2, got -inf"),
        ("repetition_penalty", 0.0, "greater than 0, got 0.0"),
        ("repetition_penalty", math.inf, "finite"),
        ("logit_bias", {3: math.nan}, "finite, got nan for id 3"),
        ("logit_bias", {-1: 1.0}, "not be negative, got -1"),
        ("logit_bias", dict.fromkeys(range(301), 1.0), "at most 300 ids, got 301"),
        ("min_tokens", -1, "from 0 to max_tokens = 16, got -1"),
        ("min_tokens", 17, "from 0 to max_tokens = 16, got 17"),
        ("n", 0, "from 1 to 8, got 0"),
        ("n", 9, "from 1 to 8, got 9"),
        ("bad_words", [""], "1 to 64 characters, got ''"),
        ("bad_words", ["x"] * 101, "at most 100 words, got 101"),
        ("bad_words", ["\udc00"], "Unicode"),
        ("bad_words_token_ids", [[]], "at least one"),
        ("bad_words_token_ids", [[1]] * 201, "at most 200"),
        ("allowed_token_ids", [], "at least one id"),
        ("allowed_token_ids", [-4], "not be negative, got -4"),
        ("logprobs", 21, "from 0 to 20, got 21"),
        ("prompt_logprobs", -1, "from 0 to 20, got -1"),
    ],
)
def test_sampling_params_refuse_what_cannot_work(name: str, value: object, words: str) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(RequestError) as info:
        SamplingParams(**arguments)
    assert info.value.param == name
    assert words in info.value.message


def test_stop_is_a_tuple_however_it_is_given() -> None:
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)
    assert hash(SamplingParams(stop=["a"])) == hash(SamplingParams(stop="a"))


def test_a_bias_is_clamped_and_several_greedy_answers_are_refused() -> None:
    assert SamplingParams(logit_bias={1: 10**400, 2: -math.inf}).logit_bias == {1: 100.0, 2: -100.0}
    with pytest.raises(RequestError, match="temperature 0") as info:
        SamplingParams(n=2, temperature=0)
    assert info.value.param == "n"


def test_engine_settings_have_working_defaults() -> None:
    config = EngineConfig(model_dir=DEMO_MODEL_DIR)
    assert (config.tensor_parallel_size, config.device, config.numerics) == (1, "auto", "auto")
    assert (DEMO_MODEL_DIR / "config.json").is_file()


@pytest.mark.parametrize(
    ("numerics", "on_cpu", "on_cuda"),
    [("auto", True, False), ("exact", True, True), ("fast", False, False)],
)
def test_exact_mode_is_the_default_on_cpu_only(
    numerics: Numerics, on_cpu: bool, on_cuda: bool
) -> None:
    config = EngineConfig(model_dir=DEMO_MODEL_DIR, numerics=numerics)
    assert (config.is_exact_on("cpu"), config.is_exact_on("cuda")) == (on_cpu, on_cuda)


@pytest.mark.parametrize(
    "name",
    [
        "tensor_parallel_size",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "kv_cache_memory",
        "block_size",
        "num_threads",
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_engine_settings_refuse_counts_below_one(name: str, value: int) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError) as info:
        EngineConfig(model_dir=DEMO_MODEL_DIR, **arguments)
    assert (info.value.field, info.value.value) == (name, value)


@pytest.mark.parametrize("name", ["device", "dtype", "kv_cache_dtype", "numerics"])
def test_engine_settings_refuse_names_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} = 'tpu': must be one of auto, "):
        EngineConfig(model_dir=Path("m"), **{name: "tpu"})


def test_a_step_must_have_room_for_every_sequence() -> None:
    EngineConfig(model_dir=DEMO_MODEL_DIR, max_num_seqs=64, max_num_batched_tokens=64)
    with pytest.raises(ConfigError, match="at least max_num_seqs = 64"):
        EngineConfig(model_dir=DEMO_MODEL_DIR, max_num_seqs=64, max_num_batched_tokens=63)


@pytest.mark.parametrize(
    ("device_type", "settings", "expected"),
    [
        ("cpu", {}, 256),
        ("cuda", {}, 2_048),
        ("cpu", {"max_num_seqs": 300}, 300),
        ("cpu", {"max_num_seqs": 3}, 256),
        ("cuda", {"max_num_batched_tokens": 512}, 512),
    ],
)
def test_a_steps_tokens_follow_from_the_device(
    device_type: str, settings: dict[str, int], expected: int
) -> None:
    config = EngineConfig(model_dir=DEMO_MODEL_DIR, **settings)  # type: ignore[arg-type]
    assert config.num_tokens_of_a_step(device_type) == expected


VALUES = [
    EngineConfig(model_dir=DEMO_MODEL_DIR, block_size=16),
    SamplingParams(temperature=0.5, stop=["a"], seed=-3),
    GenerateRequest(request_id="r", prompt_token_ids=(1, 2), params=SamplingParams()),
    TokenDelta(request_id="r", token_ids=(5,), finish_reason=FinishReason.STOP, stop_reason=5),
    Usage(prompt_tokens=3, completion_tokens=4),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_survive_pickling_and_cannot_be_changed(value: object) -> None:
    twin = pickle.loads(pickle.dumps(value))
    assert twin == value
    is_tuple = isinstance(value, tuple)
    names = getattr(value, "_fields" if is_tuple else "__dataclass_fields__")
    with pytest.raises(AttributeError):  # of which a dataclass's own error is a kind
        setattr(twin, next(iter(names)), None)


def test_usage_adds_up() -> None:
    assert Usage(prompt_tokens=3, completion_tokens=4).total_tokens == 7


def test_finish_reasons_are_spelled_as_in_the_api() -> None:
    assert [str(reason) for reason in FinishReason] == ["stop", "length", "abort", "error"]
