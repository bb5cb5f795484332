"""A bundle on its way to the nodes that lack it: read once, put into Ray's object store in pieces, and taken from it.

A piece that several nodes need is one object: Ray's nodes pass it on to each other. A few pieces are there at a time,
however large the bundle: who is ahead of the others waits for them, and not for long. The front has the folder, so a
node that is lost takes nothing with it.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flambeau.bundle import storage
from flambeau.errors import BundleError, EngineError
from flambeau.runners.ray.connection import in_thread
from flambeau.sources import by_content
from flambeau.telemetry import logs

_PIECE = 16 * 1024 * 1024  # bytes
_AHEAD = 3  # pieces that the first node may be ahead of the last; one more than that is in the object store
_PATIENCE = 5.0  # seconds that the others wait for a node that takes no piece


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a member, from byte `start` on."""

    name: str
    start: int


class BundleParcel:
    """One bundle, for the hosts of one runner."""

    def __init__(self, ray: Any, folder: Path) -> None:
        """Reads the manifest alone. Raises `BundleError` where there is none."""
        self._ray = ray
        self._folder = folder
        try:
            self.digest = by_content.digest_of(folder)
        except OSError as error:
            raise BundleError(f"{folder} is not a bundle: {error.strerror}") from error
        self._nodes: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._packing = asyncio.Lock()
        self._pieces: dict[_Piece, Any] = {}  # references to those that are in the object store, the oldest first
        self._next: dict[str, int] = {}  # of each node that takes the bundle: the index of its next piece
        self._moved = asyncio.Event()

    async def deliver(self, host: Any, node: str) -> None:
        """Have a host's node keep the bundle, unless it does. Of several hosts on a node, one takes it.

        Raises what Ray raises, and `EngineError` when the bundle did not arrive as it was sent.
        """
        async with self._nodes[node]:
            if await host.find.remote(self.digest, str(self._folder)):
                return
            try:
                for index, piece in enumerate(await asyncio.to_thread(self._list)):
                    self._next[node] = index
                    self._move()
                    await self._wait_for_others(index)
                    await host.receive.remote(self.digest, piece.name, await self._packed(piece))
                try:
                    await host.keep.remote()
                except self._ray.exceptions.RayTaskError as error:
                    raise EngineError(f"a bundle did not arrive at node {node[:8]}: {error.cause}") from None
                logs.event("bundle sent", bundle=self._folder.name, sha256=self.digest[:12], node=node[:8])
            finally:
                self._next.pop(node, None)
                self._move()
                if not self._next:
                    self._pieces.clear()

    def _list(self) -> list["_Piece"]:
        """The bundle's pieces, in the order in which they are sent. An empty member is one, too."""
        found = []
        for name in (by_content.MANIFEST, *storage.read(self._folder, whole=False).manifest.members):
            size = (self._folder / name).stat().st_size
            found += [_Piece(name, start) for start in range(0, max(1, size), _PIECE)]
        return found

    async def _wait_for_others(self, index: int) -> None:
        """Return when every node is less than `_AHEAD` pieces behind. One that does not go on is left behind."""
        while slow := [node for node, its in self._next.items() if index - its >= _AHEAD]:
            try:
                await asyncio.wait_for(self._moved.wait(), _PATIENCE)
            except TimeoutError:
                for node in slow:
                    self._next.pop(node, None)  # until it takes another piece

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _packed(self, piece: "_Piece") -> Any:
        """The reference to a piece. One that is asked for late is read again."""
        async with self._packing:
            if piece not in self._pieces:
                self._pieces[piece] = await in_thread(lambda: self._ray.put(self._read(piece)))
                while len(self._pieces) > _AHEAD + 1:
                    del self._pieces[next(iter(self._pieces))]
            return self._pieces[piece]

    def _read(self, piece: "_Piece") -> bytes:
        with (self._folder / piece.name).open("rb") as file:
            file.seek(piece.start)
            return file.read(_PIECE)
