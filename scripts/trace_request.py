"""Count what one photograph costs the front: Python calls, functions and files of Flambeau on the loop's thread.

    python scripts/trace_request.py [SOURCE] [--calls]

It serves the source (the embedded model without one) in this process, with worker processes, and sends a form with one
photograph over a socket. A call is what `sys.setprofile` calls one: a coroutine that goes on counts again. Of several
requests the cheapest is shown, for clocks tick in the others. `--calls` lists the calls in their order.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from importlib.resources import files
from pathlib import Path
from types import FrameType

import flambeau
from flambeau.http.access import open_access
from flambeau.http.listening import bind
from flambeau.http.server import run
from flambeau.http.systemd import Supervisor
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache

PACKAGE = str(Path(flambeau.__file__).parent) + os.sep
WARM_UP, MEASURED = 20, 9
Calls = list[tuple[str, str]]  # file and function


def form() -> bytes:
    """A request with one photograph, as curl sends it."""
    picture = files("flambeau.ui").joinpath("static", "samples", "chelsea.jpg").read_bytes()
    about = b'Content-Disposition: form-data; name="file"; filename="cat.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = b"--edge\r\n" + about + picture + b"\r\n--edge--\r\n"
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def measure(loop: asyncio.AbstractEventLoop, port: int) -> list[Calls]:
    """The calls of each request, all sent over one connection."""
    found: list[Calls] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found[-1].append((frame.f_code.co_filename.removeprefix(PACKAGE), frame.f_code.co_qualname))

    async def profile(on: bool) -> None:
        sys.setprofile(note if on else None)  # of this thread, which is the loop's

    request = form()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for number in range(WARM_UP + MEASURED):
            if number >= WARM_UP:
                found.append([])
                asyncio.run_coroutine_threadsafe(profile(True), loop).result()
            sock.sendall(request)
            answer = sock.recv(65536)
            asyncio.run_coroutine_threadsafe(profile(False), loop).result()
            assert answer.startswith(b"HTTP/1.1 200 "), answer
    return found


def main() -> None:
    """Serve, measure, stop, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?")
    parser.add_argument("--calls", action="store_true")
    arguments = parser.parse_args()
    settings = Settings(port=0)
    bundle = build_cache.open_source(SourceOptions(source=arguments.source), progress=lambda event: None)
    address = bind(settings.host, settings.port)
    found: list[Calls] = []

    def work(loop: asyncio.AbstractEventLoop) -> None:
        try:
            found.extend(measure(loop, address.bound.getsockname()[1]))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def ready(_: Service) -> None:
        threading.Thread(target=work, args=(asyncio.get_running_loop(),)).start()

    run(
        lambda: Service([bundle], settings), address, open_access(settings, ours=True),
        encryption=None, on_ready=ready, supervisor=Supervisor({}),
    )  # fmt: skip
    calls = min(found, key=len)
    if arguments.calls:
        print("\n".join(f"{file:34}{function}" for file, function in calls))
    for file, count in Counter(file for file, _ in calls).most_common():
        print(f"{file:34}{count:4} calls of {len({name for each, name in calls if each == file}):3} functions")
    print(json.dumps({"calls": len(calls), "functions": len(set(calls)), "files": len({file for file, _ in calls})}))


if __name__ == "__main__":
    main()
