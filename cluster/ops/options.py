"""Command-line options made from the fields of `DeployConfig`, so that the two never differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from cluster.config import DeployConfig


def with_deploy_options(command: Callable[..., None]) -> Callable[..., None]:
    """A typer command whose `settings: Mapping[str, object]` come from one option per setting.

    `settings` holds what the user gave; the command's other parameters stay options of their own.
    """
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "settings"
    ]
    fields = DeployConfig.model_fields

    def wrapper(**options: object) -> None:
        settings = {name: options.pop(name) for name in fields}
        given: Mapping[str, object] = {k: v for k, v in settings.items() if v is not None}
        command(settings=given, **options)

    parameters = [*own, *(_option(name, field) for name, field in fields.items())]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    shown = "" if field.default is None else f" [default: {field.default}]"
    option = typer.Option(help=f"{field.description}{shown}")
    optional: object = field.annotation | None  # type: ignore[operator]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[optional, option]
    )
