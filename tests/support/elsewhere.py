"""A host on a machine that does not see the front's folders. A module of its own, because Ray's workers import it."""

from flambeau.runners.ray.host import ReplicaHost


class ElsewhereHost(ReplicaHost):
    async def find(self, digest: str, shared: str) -> bool:
        return await super().find(digest, "/nowhere")
