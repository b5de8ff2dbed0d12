"""The router's process under Ray Serve: one `Router`, its links, and both skins over it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from fastapi import FastAPI
from ray import serve

from cluster.config import DeployConfig
from cluster.ingress.grpc_api import GrpcServer
from cluster.ingress.http_api import create_app
from cluster.link.links import Links
from cluster.router.membership import follow
from cluster.router.router import Router
from qwen3_ray.model.generation_config import SamplingDefaults, default_sampling
from qwen3_ray.model.hub import resolve_model_dir
from qwen3_ray.text.tokenizer import Tokenizer, find_tokenizer

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

DRAIN_S = 15.0
"""How long calls that run may take to end after the router was told to stop."""

_logger = logging.getLogger(__name__)


@serve.ingress()
class RouterDeployment:
    """Faces clients: HTTP through Serve's proxy, gRPC on its own port.

    Serve makes it with the handle of the replicas' deployment, which tells where they are; no
    request goes through it.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self, config: DeployConfig, link_token: str, replicas: DeploymentHandle[object]
    ) -> None:
        tokenizer, defaults = await asyncio.to_thread(load_model_files, config)
        self._links = Links(link_token)
        self._router = Router(
            self._links,
            model=config.model_name,
            tokenizer=tokenizer,
            default_sampling=defaults,
        )
        self._grpc = await GrpcServer.start(self._router, host=config.host, port=config.grpc_port)
        follow(replicas, self._links.set_members)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._router)

    async def check_health(self) -> None:
        """Serve calls it on the event loop that serves clients, so an answer proves that it runs.

        Raises:
            RuntimeError: the gRPC server is down; Serve then replaces this router.
        """
        if not self._grpc.running:
            raise RuntimeError("the gRPC server has stopped")

    async def __del__(self) -> None:
        """Serve's shutdown hook, run to its end before the process goes."""
        if hasattr(self, "_grpc"):  # the constructor may have failed before
            await self._grpc.stop(DRAIN_S)
        if hasattr(self, "_links"):
            await self._links.close()


def load_model_files(config: DeployConfig) -> tuple[Tokenizer | None, SamplingDefaults]:
    """The tokenizer, and what requests that leave a sampling parameter open get."""
    model_dir = resolve_model_dir(config.model, with_weights=False)
    defaults: SamplingDefaults = {}
    if config.generation_config == "auto":
        defaults = default_sampling(model_dir)
    if defaults:  # a surprise for who knows OpenAI's
        told = ", ".join(f"{name} = {value}" for name, value in defaults.items())
        _logger.warning("defaults of %s from its generation_config.json: %s", model_dir, told)
    return find_tokenizer(model_dir), defaults
