"""The router's process under Ray Serve: one `Router`, its links, and both skins over it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import FastAPI
from ray import serve

from cluster.config import DeployConfig
from cluster.ingress.grpc_api import GrpcServer
from cluster.ingress.http_api import create_app
from cluster.link.links import Links
from cluster.router.membership import follow
from cluster.router.router import Router
from qwen3_ray.model.hub import resolve_model_dir
from qwen3_ray.text.tokenizer import Tokenizer, find_tokenizer

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

DRAIN_S = 15.0
"""How long calls that run may take to end after the router was told to stop."""


@serve.ingress()
class RouterDeployment:
    """Faces clients: HTTP through Serve's proxy, gRPC on its own port.

    Serve makes it with the handle of the replicas' deployment, which tells where they are; no
    request goes through it.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self, config: DeployConfig, link_token: str, replicas: DeploymentHandle[object]
    ) -> None:
        tokenizer = await asyncio.to_thread(_load_tokenizer, config.model)
        self._links = Links(link_token)
        self._router = Router(self._links, model=config.model_name, tokenizer=tokenizer)
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


def _load_tokenizer(model: str | None) -> Tokenizer | None:
    return find_tokenizer(resolve_model_dir(model, with_weights=False))
