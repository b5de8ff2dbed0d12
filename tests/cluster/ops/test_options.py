"""Every setting of a deployment is an option of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from cluster.config import DeployConfig, load_deploy_config, parse_deploy_config
from cluster.ops.options import with_deploy_options
from qwen3_ray.errors import ConfigError


def _run(*arguments: str) -> tuple[dict[str, object], str]:
    """Settings that a command gets, and what it prints."""
    seen: dict[str, object] = {}

    def serve(
        *, settings: Mapping[str, object], extra: Annotated[str, typer.Option()] = "none"
    ) -> None:
        """Do it."""
        seen.update(settings)
        typer.echo(f"extra {extra}")

    cli = typer.Typer(rich_markup_mode=None)
    cli.command()(with_deploy_options(serve))
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return seen, result.output


def test_nothing_given_leaves_every_default_alone() -> None:
    settings, output = _run()
    assert settings == {}
    assert output == "extra none\n"


def test_given_options_arrive_with_their_types() -> None:
    settings, output = _run(
        "--model", "dir", "--http-port", "81", "--upscale-delay-s", "0.5", "--device", "cpu",
        "--extra", "more",
    )  # fmt: skip
    assert settings == {"model": "dir", "http_port": 81, "upscale_delay_s": 0.5, "device": "cpu"}
    assert output == "extra more\n"


def test_help_shows_every_setting_with_its_default() -> None:
    _, output = _run("--help")
    for name, field in DeployConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in output
        assert field.description, name


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text("http_port: 81\ngrpc_port: 82\n")
    config = load_deploy_config(file, {"grpc_port": 83})
    assert (config.http_port, config.grpc_port) == (81, 83)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"http_prot": 1}, r"^http_prot = 1: unknown setting; did you mean 'http_port'\?$"),
        ({"http_port": 0}, r"^http_port = 0: Input should be greater than or equal to 1$"),
        ({"http_port": 9000}, r"http_port and grpc_port are both 9000$"),
        ({"num_replicas": 1, "max_replicas": 2}, r"num_replicas excludes min_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, r"min_replicas = 3 exceeds max_replicas = 2"),
        ({"device": "tpu"}, r"^device = 'tpu': Input should be 'auto', 'cpu' or 'cuda'$"),
    ],
)
def test_a_bad_setting_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_deploy_config(values)


@pytest.mark.parametrize(("text", "message"), [("- 1", "must hold a mapping"), ("{", "cannot be")])
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"config = .*{message}"):
        load_deploy_config(file, {})


@pytest.mark.parametrize(
    ("values", "name", "tp_size", "replicas"),
    [
        ({}, "demo", 2, (1, 1)),
        ({"model": "Qwen/Qwen3-4B-Base"}, "Qwen/Qwen3-4B-Base", 1, (1, 1)),
        ({"served_model_name": "q", "tensor_parallel_size": 4}, "q", 4, (1, 1)),
        ({"max_replicas": 3}, "demo", 2, (1, 3)),
        ({"min_replicas": 2}, "demo", 2, (2, 2)),
        ({"num_replicas": 5}, "demo", 2, (5, 5)),
    ],
)
def test_defaults_follow_from_what_is_given(
    values: dict[str, object], name: str, tp_size: int, replicas: tuple[int, int]
) -> None:
    config = parse_deploy_config(values)
    assert (config.model_name, config.tp_size, config.replica_range) == (name, tp_size, replicas)
