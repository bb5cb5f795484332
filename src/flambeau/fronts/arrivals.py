"""The supervisor's listening socket: accepts connections while a front can take them, and deals them.

While no front can, they wait in the kernel's queue for a bounded time, and are then turned away. It starts no front and
reads nothing that a client sends.
"""

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable

from flambeau.fronts.dealing import Dealer, elsewhere
from flambeau.fronts.front_process import FrontProcess
from flambeau.fronts.turning_away import turn_away
from flambeau.http.listening import Address
from flambeau.telemetry import logs

_BACKLOG = 2048
_MOST_AT_ONCE = 64  # connections accepted in one turn of the loop
_AGAIN_SECONDS = 0.02  # until the next attempt, when the queues of all fronts are full
_WAIT_SECONDS = 5.0  # for a front, before connections are turned away
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_DESCRIPTORS_SECONDS = 0.5  # until the next attempt when there are no descriptors


class Arrivals:
    """The connections that come, and the fronts that get them."""

    def __init__(self, address: Address, fronts: Callable[[], Iterable[FrontProcess]], *, encrypted: bool) -> None:
        self._address = address
        self._listening = address.bound
        self._fronts = fronts
        self._encrypted = encrypted
        self._dealer = Dealer()
        self._held: deque[tuple[socket.socket, str]] = deque()  # accepted, and not yet given to anybody
        self._open = False
        self._reading = False
        self._gives_up: asyncio.TimerHandle | None = None
        self._turning_away = False
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Listen. Raises `PortInUse` if another process has begun to."""
        self._listening.setblocking(False)
        try:
            self._listening.listen(_BACKLOG)
        except OSError as error:
            raise self._address.cannot_listen(error) from error
        self._open = True
        self.wake()

    def wake(self) -> None:
        """A front may take connections now, or none may any more."""
        if not self._open:
            return
        able = any(front.present for front in self._fronts())
        if able:
            if self._gives_up is not None:
                self._gives_up.cancel()
            self._gives_up, self._turning_away = None, False
            self._flush()
        elif self._gives_up is None and not self._turning_away:
            self._gives_up = asyncio.get_running_loop().call_later(_WAIT_SECONDS, self._give_up)
        self._read((able and not self._held) or self._turning_away)

    def give_back(self, connections: Iterable[tuple[socket.socket, str]]) -> None:
        """Deal these again: the front that had them is gone, and never took them."""
        self._held.extend(connections)
        if self._open:
            self.wake()
        else:
            self._flush()

    async def end(self) -> None:
        """Refuse new connections, and deal those that wait. On a socket that is lent they wait for the next process."""
        if not self._open:
            return
        self._open = False
        self._read(False)
        if self._gives_up is not None:
            self._gives_up.cancel()
        if not self._address.lent:
            with self._listening.dup() as spare:
                spare.setblocking(False)
                self._address.refuse_newcomers(spare)
                while self._accept(spare):
                    self._flush()
        self._listening.close()  # from now on the kernel refuses
        for _ in range(100):
            self._flush()
            if not self._held or not any(front.present for front in self._fronts()):
                break
            await asyncio.sleep(_AGAIN_SECONDS)
        self._turn_all_away()

    def turn_away(self, connections: Iterable[tuple[socket.socket, str]]) -> None:
        """Answer these with 503."""
        for connection, _ in connections:
            task = asyncio.get_running_loop().create_task(turn_away(connection, encrypted=self._encrypted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _give_up(self) -> None:
        logs.event("no front can take connections: they are answered 503", level=logging.ERROR)
        self._gives_up, self._turning_away = None, True
        self._turn_all_away()
        self._read(True)

    def _turn_all_away(self) -> None:
        held, self._held = [*self._held], deque()
        self.turn_away(held)

    def _read(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        self._reading = wanted
        loop = asyncio.get_running_loop()
        if wanted:
            loop.add_reader(self._listening.fileno(), self._arrive)
        else:
            loop.remove_reader(self._listening.fileno())

    def _arrive(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            if not self._accept(self._listening):
                break
            if self._turning_away:
                self._turn_all_away()
            elif not self._flush():
                break

    def _accept(self, listening: socket.socket) -> bool:
        """Accept one connection; false if there is none."""
        try:
            connection, peer = listening.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                return error.errno == errno.ECONNABORTED  # the client has left
            logs.cannot_accept(error)
            self._read(False)
            asyncio.get_running_loop().call_later(_DESCRIPTORS_SECONDS, self.wake)
            return False
        self._held.append((connection, peer[0] if isinstance(peer, tuple) else ""))
        return True

    def _flush(self) -> bool:
        """Deal what is held; false if something is left, because the queues of all fronts are full."""
        while self._held:
            connection, address = self._held[0]
            if not self._deal(connection, address):
                self._read(False)
                if any(front.present for front in self._fronts()):
                    asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self.wake if self._open else self._flush)
                return False
            self._held.popleft()
        return True

    def _deal(self, connection: socket.socket, address: str) -> bool:
        """Give a connection to the front with the fewest: of those that are prompt and can answer, if there are any."""
        present = [front for front in self._fronts() if front.present]
        hands = [front.hand for front in present]
        best = [front for front in present if front.prompt and front.able] or [each for each in present if each.prompt]
        wanted = best or present
        while (hand := self._dealer.choose(front.hand for front in wanted)) is not None:
            front = next(each for each in wanted if each.hand is hand)
            if front.give(connection, address, elsewhere(hands, hand, address)):
                self._dealer.deal(hand, address)
                return True
            wanted = [each for each in wanted if each is not front]
        return False
