"""A bundle on its way to the nodes that lack it: read once, put into Ray's object store in pieces, and taken from it.

A piece that several nodes need is one object: Ray's nodes pass it on to each other. The pieces are let go of once
nobody takes them any more. The front has the folder, so a node that is lost takes nothing with it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flambeau.bundle import storage
from flambeau.errors import BundleError, EngineError
from flambeau.runners.ray import content
from flambeau.runners.ray.connection import in_thread
from flambeau.telemetry import logs

_PIECE = 16 * 1024 * 1024  # bytes


class BundleParcel:
    """One bundle, for the hosts of one runner."""

    def __init__(self, ray: Any, folder: Path) -> None:
        """Reads the manifest alone. Raises `BundleError` where there is none."""
        self._ray = ray
        self._folder = folder
        try:
            self.digest = content.digest_of(folder)
        except OSError as error:
            raise BundleError(f"{folder} is not a bundle: {error.strerror}") from error
        self._nodes: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._packing = asyncio.Lock()
        self._pieces: list[tuple[str, Any]] = []  # member, and the reference to a piece of it
        self._takers = 0

    async def deliver(self, host: Any, node: str) -> None:
        """Have a host's node keep the bundle, unless it does. Of several hosts on a node, one takes it.

        Raises what Ray raises, and `EngineError` when the bundle did not arrive as it was sent.
        """
        async with self._nodes[node]:
            if await host.find.remote(self.digest, str(self._folder)):
                return
            self._takers += 1
            try:
                sent = await self._packed()
                for name, piece in sent:
                    await host.receive.remote(self.digest, name, piece)
                try:
                    await host.keep.remote()
                except self._ray.exceptions.RayTaskError as error:
                    raise EngineError(f"a bundle did not arrive at node {node[:8]}: {error.cause}") from None
                logs.event("bundle sent", bundle=self._folder.name, sha256=self.digest[:12], node=node[:8])
            finally:
                self._takers -= 1
                if not self._takers:
                    self._pieces = []

    async def _packed(self) -> list[tuple[str, Any]]:
        async with self._packing:
            if not self._pieces:
                self._pieces = await in_thread(lambda: [(name, self._ray.put(piece)) for name, piece in self._read()])
            return self._pieces

    def _read(self) -> Iterator[tuple[str, bytes]]:
        for name in (content.MANIFEST, *storage.read(self._folder, whole=False).manifest.members):
            with (self._folder / name).open("rb") as file:
                piece = file.read(_PIECE)
                while True:  # an empty member is a piece, too
                    yield name, piece
                    if not (piece := file.read(_PIECE)):
                        break
