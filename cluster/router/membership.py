"""Who the replicas are and where their links listen, from Ray Serve's own push.

The one file that knows `DeploymentHandle._init` (private, Ray 2.60). Serve's list is slow to drop
a dead replica; the links themselves notice first.
"""

from __future__ import annotations

from collections.abc import Callable

from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from cluster.router.members import BOARD, Listener

LINK_KEY = "link"
"""Key of the link's address in the metadata that a replica gives to Serve."""
REQUEST_ROUTER_CLASS = "cluster.router.membership:MembershipRequestRouter"
"""For the replica deployment's `RequestRouterConfig`."""


class MembershipRequestRouter(RequestRouter):
    """Tells this process where the replicas' links listen; no requests go through Serve's handles.

    Serve ships the class by value: the globals of its module are copies in the process that runs
    it. The board is therefore imported where it is used.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        from cluster.router.members import BOARD  # noqa: PLC0415

        super().update_replicas(replicas)
        metadata = {replica.replica_id.unique_id: replica.replica_metadata for replica in replicas}
        BOARD.publish(
            {
                replica_id: str(values[LINK_KEY])
                for replica_id, values in metadata.items()
                if LINK_KEY in values
            }
        )

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002
    ) -> list[list[RunningReplica]]:
        return [candidate_replicas]


def follow(replicas: DeploymentHandle[object], listener: Listener) -> None:
    """Call `listener` on the running event loop with each new list of the replicas' links."""
    BOARD.listen(listener)
    start_push: Callable[[], None] = replicas._init  # private; without it a request would be needed
    start_push()
