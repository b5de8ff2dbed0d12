"""One Jinja template, with what Hugging Face's libraries give to chat templates, and bounded.

Imports jinja2, so it is itself imported only when there is a template to compile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

from qwen3_ray.errors import CheckpointError, RequestError

MAX_TEXT_LENGTH = 2**24
"""Characters of a rendered text; far more than the longest context of any Qwen3 model holds."""
MAX_LOOP_TURNS = 1_000_000
"""Turns of all loops of one rendering together."""

_COUNTED = "_counted"
_LOOP_BUDGET = "_loop_budget"


class JinjaTemplate:
    """A template in Jinja's sandbox: no access to Python's internals, no change of its arguments.

    It comes with the checkpoint, and is trusted as far as that is. Two limits keep its accidents
    small: on the turns of all its loops and on the text it gives.
    """

    def __init__(self, source: str, *, file: Path) -> None:
        """Compile `source`; `file` is what errors name.

        Raises:
            CheckpointError: its syntax is wrong.
        """
        self._file = file
        try:
            self._template = _ChatEnvironment().from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                file, f"line {error.lineno} of the chat template: {error}"
            ) from error

    def render(self, variables: Mapping[str, object]) -> str:
        """The text for `variables`, which hold plain JSON values.

        Raises:
            RequestError: the template refuses the messages, cannot render them or exceeds a limit.
            CheckpointError: it does what the sandbox forbids.
        """
        context = {**variables, _LOOP_BUDGET: _LoopBudget(MAX_LOOP_TURNS)}
        try:
            return _join(self._template.generate(context))
        except SecurityError as error:
            raise CheckpointError(
                self._file, f"the chat template does what is not allowed: {error}"
            ) from error
        except TemplateError as error:
            raise RequestError("messages", f"the chat template refuses them: {error}") from error
        except Exception as error:  # whatever its expressions meet in the messages
            raise RequestError(
                "messages",
                f"the chat template cannot render them: {type(error).__name__}: {error}",
            ) from error


class _LoopBudget:
    """Turns that the loops of one rendering may still make."""

    def __init__(self, num_turns: int) -> None:
        self._num_turns = num_turns

    def spend(self) -> None:
        """Take one turn off."""
        if self._num_turns == 0:
            raise TemplateError(f"its loops make more than {MAX_LOOP_TURNS} turns")
        self._num_turns -= 1


class _GenerationTag(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: marks the model's own text, for training."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Scope:
        """The body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    """Whose `for` loops all spend from the `_LoopBudget` in the context."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationTag],
        )
        self.filters["tojson"] = _to_json
        self.filters[_COUNTED] = _counted
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno, environment=self
            )
        return template


@pass_context
def _counted(context: Context, items: Iterable[object]) -> Iterator[object]:
    budget: _LoopBudget = context[_LOOP_BUDGET]
    for item in items:
        budget.spend()
        yield item


def _join(pieces: Iterable[str]) -> str:
    taken, length = [], 0
    for piece in pieces:
        taken.append(piece)
        length += len(piece)
        if length > MAX_TEXT_LENGTH:
            raise TemplateError(f"it gives more than {MAX_TEXT_LENGTH} characters")
    return "".join(taken)


def _raise_exception(message: str) -> None:
    """How a template refuses its messages."""
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    """The local time."""
    return datetime.now().strftime(format)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: unlike in Jinja's own filter, nothing is escaped for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
