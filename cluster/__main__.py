"""The command line: `qwen3-ray serve | generate | version`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import qwen3_ray
from cluster.config import load_deploy_config, parse_deploy_config
from cluster.ops.options import with_deploy_options
from qwen3_ray.config import Device, DType, Quantization
from qwen3_ray.errors import ConfigError, Qwen3RayError

cli = typer.Typer(
    help="Serve Qwen3 models with tensor parallelism on Ray.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cli.command()
@with_deploy_options
def serve(
    *,
    settings: Mapping[str, object],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with these settings; options win over it")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Serve on this Ray cluster; default: start one on this machine"),
    ] = None,
) -> None:
    """Serve a model over HTTP and gRPC until SIGINT or SIGTERM. Without options: the demo model."""
    values = dict(settings)
    deploy = load_deploy_config(config, values) if config else parse_deploy_config(values)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray loads
    # Loaded here: it loads Ray, which the other commands do not need.
    from cluster.ops.serving import serve_until_stopped  # noqa: PLC0415

    serve_until_stopped(deploy, ray_address=ray_address)


@cli.command()
def generate(
    *,
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input")],
    model: Annotated[
        str | None, typer.Option(help="Directory or Hugging Face id; none: demo model")
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help="Ranks, one process each")] = 1,
    device: Annotated[Device, typer.Option()] = "auto",
    dtype: Annotated[DType, typer.Option()] = "auto",
    quantization: Annotated[
        Quantization, typer.Option(help="eight bits: int8 on CPU, fp8 on CUDA")
    ] = "none",
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt plus output")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate")] = 64,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: all")] = 0,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the output; repeatable")] = None,
) -> None:
    """Continue a prompt in this process and stream the text to the terminal."""
    from qwen3_ray import LLM, SamplingParams  # noqa: PLC0415  (loads torch)

    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
        stop=stop or (),
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    with Console(stderr=True).status("Loading the model"):  # shows on a terminal only
        llm = LLM(
            model=model,
            tensor_parallel_size=tensor_parallel_size,
            device=device,
            dtype=dtype,
            quantization=quantization,
            max_model_len=max_model_len,
        )
    with llm:
        for piece in llm.stream(text, params):
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    sys.stdout.write("\n")


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(qwen3_ray.__version__)


def main() -> None:
    """Run a command; an error of ours is one line on stderr, with exit code 2 for a setting."""
    try:
        cli()
    except Qwen3RayError as error:
        typer.echo(f"error: {error}", err=True)
        is_setting = isinstance(error, ConfigError) or getattr(error, "is_setting", False)
        sys.exit(2 if is_setting else 1)


if __name__ == "__main__":
    main()
