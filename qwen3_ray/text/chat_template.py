"""Chats to prompts, by the Jinja template that a checkpoint brings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from qwen3_ray.errors import CheckpointError, RequestError
from qwen3_ray.text.chat_messages import ChatMessage, normalize_messages, plain_json

if TYPE_CHECKING:
    from qwen3_ray.text.jinja_template import JinjaTemplate

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
MORE_TEMPLATES_DIR = "additional_chat_templates"

_DEFAULT = "default"
_TOOL_USE = "tool_use"
_SPECIAL_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
_OUR_VARIABLES = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
_END = "\ue000 "
"""Marks where the message to continue ends; its space tells whether templates trim messages."""


class ChatOptions(TypedDict, total=False):
    """How a chat becomes a prompt: the options of `ChatTemplate.render`, which explains them."""

    tools: Sequence[Mapping[str, object]] | None
    documents: Sequence[Mapping[str, object]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    chat_template_kwargs: Mapping[str, object] | None


class ChatTemplate:
    """A checkpoint's chat template; gives the prompts that Hugging Face's libraries give.

    Any number of threads may use one.
    """

    def __init__(
        self, sources: Mapping[str, str], special_tokens: Mapping[str, str], *, file: Path
    ) -> None:
        """Take templates by name: `default`, and maybe `tool_use` for requests with tools.

        Args:
            sources: the templates' texts.
            special_tokens: what `bos_token`, `eos_token`, ... stand for in them.
            file: what errors name.

        Raises:
            CheckpointError: there is no default template.
        """
        if _DEFAULT not in sources:
            names = ", ".join(sorted(sources))
            raise CheckpointError(file, f"has no chat template named {_DEFAULT}, only {names}")
        self._sources = sources
        self._special_tokens = special_tokens
        self._file = file

    def compile(self) -> None:
        """Compile the templates now, not when they are first used.

        Raises:
            CheckpointError: the syntax of one is wrong.
        """
        _ = self._templates

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt that stands for a chat.

        Args:
            messages: objects with `role` and `content` (text or text parts), and whatever else the
                template reads, like `tool_calls`.
            tools: JSON schemas of functions that the model may call.
            documents: texts to answer from, for templates that know them.
            add_generation_prompt: end with the beginning of the assistant's answer.
            continue_final_message: end inside the last message, for the model to go on with.
            chat_template_kwargs: more variables for the template, like `enable_thinking`.

        Raises:
            RequestError: an argument is wrong, or the template refuses or cannot render them.
            CheckpointError: the template's syntax is wrong, or it does what the sandbox forbids.
        """
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "continue_final_message",
                "asks to go on with the last message, add_generation_prompt to begin a new one: "
                "only one of them can be true",
            )
        chat = normalize_messages(messages)
        final = str(chat[-1]["content"])
        if continue_final_message:
            chat[-1]["content"] = final + _END
        tool_schemas = plain_json("tools", tools) or None
        text = self._template_for(tool_schemas).render(
            {
                **self._special_tokens,
                **_checked_kwargs(chat_template_kwargs),
                "messages": chat,
                "tools": tool_schemas,
                "documents": plain_json("documents", documents),
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _up_to_end(text, final) if continue_final_message else text

    def _template_for(self, tools: object) -> JinjaTemplate:
        wanted = _DEFAULT if tools is None or _TOOL_USE not in self._sources else _TOOL_USE
        return self._templates[wanted]

    @cached_property
    def _templates(self) -> Mapping[str, JinjaTemplate]:
        from qwen3_ray.text.jinja_template import JinjaTemplate  # noqa: PLC0415  for chats only

        return {
            name: JinjaTemplate(source, file=self._file)
            for name, source in self._sources.items()
            if name in (_DEFAULT, _TOOL_USE)
        }


def find_chat_template(model_dir: Path) -> ChatTemplate | None:
    """The chat template of a model directory, or None when it has none.

    `chat_template.jinja` and `additional_chat_templates/` count before `chat_template` in
    tokenizer_config.json, which is a text or a list of named ones.

    Raises:
        CheckpointError: a file is damaged, or none of several templates is the default one.
    """
    config_file = model_dir / CONFIG_NAME
    config = _read_config(config_file)
    file, sources = model_dir / TEMPLATE_NAME, _template_files(model_dir)
    if not sources:
        file, sources = config_file, _named_templates(config_file, config.get("chat_template"))
    if not sources:
        return None
    return ChatTemplate(sources, _special_tokens(config), file=file)


def _template_files(model_dir: Path) -> dict[str, str]:
    files = {path.stem: path for path in (model_dir / MORE_TEMPLATES_DIR).glob("*.jinja")}
    if (model_dir / TEMPLATE_NAME).exists():
        files[_DEFAULT] = model_dir / TEMPLATE_NAME
    return {name: _read_text(path) for name, path in files.items()}


def _named_templates(file: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {_DEFAULT: value}
    sources: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [value]:
        name = entry.get("name") if isinstance(entry, dict) else None
        source = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(source, str):
            raise CheckpointError(
                file, f"field chat_template must be text or a list of named ones, got {entry!r:.80}"
            )
        sources[name] = source
    return sources


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """The special tokens that the config names; each is a text or an object with `content`."""
    tokens = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _read_config(file: Path) -> Mapping[str, object]:
    if not file.exists():
        return {}
    try:
        config = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file, f"cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(file, "must hold a JSON object")
    return config


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(file, f"cannot be read as text: {error}") from error


def _checked_kwargs(kwargs: Mapping[str, object] | None) -> dict[str, object]:
    plain = plain_json("chat_template_kwargs", kwargs or {})
    if not isinstance(plain, dict):
        raise RequestError("chat_template_kwargs", f"must be an object, got {kwargs!r:.80}")
    for name in plain:
        if name in _OUR_VARIABLES or name.startswith("_"):
            raise RequestError("chat_template_kwargs", f"must not hold {name!r:.80}")
    return plain


def _up_to_end(text: str, final: str) -> str:
    """`text` up to the end of its last message, `final`, which is marked."""
    before, mark, after = text.rpartition(_END.rstrip())
    if not mark or final.strip() not in before:
        raise RequestError(
            "continue_final_message",
            "the chat template does not keep the last message as it is: it cannot be continued",
        )
    return before if after.startswith(" ") else before.rstrip()
