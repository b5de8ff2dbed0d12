"""Prompts of chats against transformers' `apply_chat_template`."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ray.config import DEMO_MODEL_DIR
from qwen3_ray.errors import CheckpointError, RequestError
from qwen3_ray.text.chat_template import ChatTemplate, find_chat_template

QWEN3 = (Path(__file__).parent / "data" / "qwen3_chat_template.jinja").read_text()
ORACLE = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL_DIR)
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather <of> a "place" & time, 天气',
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}

# Texts that the template looks into, and others.
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            *("", " \n", "Hello", "你好 🎉", "\n\nText\n", "Text  ", "<b>&\"'"),
            *("<think>\nHm.\n</think>\n\nYes. ", "a</think>b</think>\nc", "<think>unfinished"),
            *("<tool_response>1</tool_response>", "<|im_end|>", "{{ 1 + 1 }}{% if x %}"),
        ]
    ),
)
ARGUMENTS = st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), TEXTS), max_size=2)
TOOL_CALLS = st.lists(
    st.builds(
        lambda name, arguments: {"function": {"name": name, "arguments": arguments}},
        st.sampled_from(["weather", "f"]),
        ARGUMENTS,
    ),
    max_size=2,
)
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]), "content": TEXTS}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXTS},
        optional={"tool_calls": TOOL_CALLS, "reasoning_content": TEXTS},
    ),
)
CHATS = st.lists(MESSAGES, min_size=1, max_size=6)


@cache
def template_of(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {}, file=Path("template"))


def outcome(render: Callable[[], str]) -> str | None:
    """What was rendered, None if that was refused."""
    try:
        return render()
    except (RequestError, ValueError):
        return None


@settings(max_examples=400, deadline=None)
@given(
    chat=CHATS,
    tools=st.sampled_from([None, [TOOL], [TOOL, {"name": "f", "n": [1, 2.5, None]}]]),
    add_generation_prompt=st.booleans(),
    kwargs=st.sampled_from([{}, {"enable_thinking": True}, {"enable_thinking": False}]),
)
def test_the_prompt_is_that_of_transformers(
    chat: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    kwargs: dict[str, bool],
) -> None:
    expected = ORACLE.apply_chat_template(
        chat,
        chat_template=QWEN3,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
        **kwargs,
    )
    assert expected == template_of(QWEN3).render(
        chat,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        chat_template_kwargs=kwargs,
    )


@settings(max_examples=200, deadline=None)
@given(
    chat=CHATS,
    template=st.sampled_from([QWEN3, "{% for m in messages %}{{ m.content | trim }};{% endfor %}"]),
)
def test_a_message_is_continued_where_transformers_continues_it(
    chat: list[dict[str, Any]], template: str
) -> None:
    expected = outcome(
        lambda: ORACLE.apply_chat_template(
            chat, chat_template=template, continue_final_message=True, tokenize=False
        )
    )
    ours = template_of(template)
    assert expected == outcome(
        lambda: ours.render(chat, add_generation_prompt=False, continue_final_message=True)
    )


@settings(max_examples=50, deadline=None)
@given(chat=CHATS, add_generation_prompt=st.booleans())
def test_the_demo_model_s_own_template_gives_what_transformers_gives(
    chat: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    template = find_chat_template(DEMO_MODEL_DIR)
    assert template is not None
    assert template.render(
        chat, add_generation_prompt=add_generation_prompt
    ) == ORACLE.apply_chat_template(
        chat, add_generation_prompt=add_generation_prompt, tokenize=False
    )


def test_thinking_is_switched_off_by_an_empty_thought() -> None:
    off = template_of(QWEN3).render(HELLO, chat_template_kwargs={"enable_thinking": False})
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert template_of(QWEN3).render(HELLO).endswith("<|im_start|>assistant\n")


def test_templates_know_the_special_tokens_and_a_request_may_rename_them() -> None:
    template = ChatTemplate(
        {"default": "{{ bos_token }}|{{ eos_token }}|{{ sep_token is defined }}"},
        {"eos_token": "</s>"},
        file=Path("template"),
    )
    assert template.render(HELLO) == "|</s>|False"
    assert template.render(HELLO, chat_template_kwargs={"eos_token": "X"}) == "|X|False"


def test_a_model_without_templates_has_none(tmp_path: Path) -> None:
    assert find_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert find_chat_template(tmp_path) is None


def write(
    model_dir: Path,
    config: object = None,
    default: str | None = None,
    more: dict[str, str] | None = None,
) -> None:
    """Templates in the places where Hugging Face puts them."""
    vocab = DEMO_MODEL_DIR / "tokenizer.json"
    (model_dir / "tokenizer.json").symlink_to(vocab)
    (model_dir / "config.json").symlink_to(DEMO_MODEL_DIR / "config.json")
    values = {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": config,
        "eos_token": "<e>",
        "bos_token": {"content": "<b>", "__type": "AddedToken"},
    }
    (model_dir / "tokenizer_config.json").write_text(json.dumps(values))
    if default is not None:
        (model_dir / "chat_template.jinja").write_text(default)
    for name, source in (more or {}).items():
        (model_dir / "additional_chat_templates").mkdir(exist_ok=True)
        (model_dir / "additional_chat_templates" / f"{name}.jinja").write_text(source)


NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
@pytest.mark.parametrize(
    ("config", "default", "more"),
    [
        ("config {{ bos_token }}{{ eos_token }}", None, None),
        ("config", "file {{ bos_token }}{{ eos_token }}\n", None),
        (NAMED, None, None),
        (NAMED, "file", None),
        ("config", "file", {"tool_use": "more", "other": "other"}),
        (None, "file {%- if tools %} with tools{% endif %}", {"other": "other"}),
    ],
)
def test_templates_are_found_where_transformers_finds_them(
    tmp_path: Path,
    config: object,
    default: str | None,
    more: dict[str, str] | None,
    tools: list[dict[str, Any]] | None,
) -> None:
    write(tmp_path, config, default, more)
    template = find_chat_template(tmp_path)
    assert template is not None
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert template.render(HELLO, tools=tools) == oracle.apply_chat_template(
        HELLO, tools=tools, add_generation_prompt=True, tokenize=False
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ([{"name": "rag", "template": "R"}], "no chat template named default, only rag"),
        ([{"name": "rag"}], "text or a list of named ones"),
        (7, "text or a list of named ones"),
    ],
)
def test_damaged_templates_are_refused_and_named(
    tmp_path: Path, config: object, problem: str
) -> None:
    write(tmp_path, config)
    with pytest.raises(CheckpointError, match=problem) as info:
        find_chat_template(tmp_path)
    assert info.value.file == str(tmp_path / "tokenizer_config.json")


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000], ids=lambda text: text[:3])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="JSON"):
        find_chat_template(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        find_chat_template(tmp_path)


def test_a_syntax_error_names_file_and_line_when_it_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}\n{% for %}")
    template = find_chat_template(tmp_path)
    assert template is not None
    with pytest.raises(CheckpointError, match="line 2 of the chat template") as info:
        template.compile()
    assert info.value.file == str(tmp_path / "chat_template.jinja")


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "_loop_budget"])
def test_a_request_cannot_set_the_template_s_own_variables(name: str) -> None:
    with pytest.raises(RequestError, match=f"must not hold '{name}'") as info:
        template_of(QWEN3).render(HELLO, chat_template_kwargs={name: 1})
    assert info.value.param == "chat_template_kwargs"


def test_a_message_is_either_continued_or_answered() -> None:
    with pytest.raises(RequestError, match="only one of them") as info:
        template_of(QWEN3).render(HELLO, continue_final_message=True)
    assert info.value.param == "continue_final_message"


def test_a_message_that_the_template_changes_cannot_be_continued() -> None:
    with pytest.raises(RequestError, match="does not keep the last message"):
        template_of("{{ messages[0].content | upper }}").render(
            HELLO, continue_final_message=True, add_generation_prompt=False
        )
