"""Run commands in a network namespace where every address answers, and tell whom they called.

`ip netns exec NAME python tests/support/namespace.py ORDER`, with /etc/netns/NAME/resolv.conf naming 127.0.0.1. ORDER
is JSON: `commands`, each with an `until` it has printed a text, and `seconds` that the last of them goes on. Prints one
line of JSON: `calls`, and what the commands printed. Calls are names that somebody asks for, connections that somebody
makes, and packets that leave for any address but this host's own.
"""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any

ELSEWHERE = "10.99.0.1"  # what every name stands for
ALL_PROTOCOLS = 3  # ETH_P_ALL


class Calls:
    """Who was called."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def names(self, server: socket.socket) -> None:
        """Answer as a name server: every name is there."""
        while True:
            query, client = server.recvfrom(4096)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode(errors="replace"))
                at += 1 + query[at]
            [kind] = struct.unpack(">H", query[at + 1 : at + 3])
            self.seen.add(f"name {'.'.join(labels)}")
            found = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(ELSEWHERE) if kind == 1 else b""
            counts = struct.pack(">HHHH", 1, 1 if found else 0, 0, 0)
            server.sendto(query[:2] + b"\x81\x80" + counts + query[12 : at + 5] + found, client)

    def connections(self, server: socket.socket) -> None:
        """Accept them, and hang up."""
        while True:
            connection, _ = server.accept()
            host, port = connection.getsockname()[:2]
            if host != "127.0.0.1":
                self.seen.add(f"connection {host}:{port}")
            connection.close()

    def packets(self, sniffer: socket.socket) -> None:
        """Look at every packet of the namespace."""
        while True:
            packet = sniffer.recv(65536)[14:]  # behind the Ethernet header
            if packet[:1] and packet[0] >> 4 == 4:
                target = socket.inet_ntoa(packet[16:20])
                if not target.startswith("127."):
                    self.seen.add(f"packet to {target}, protocol {packet[9]}")
            elif packet[:1] and packet[0] >> 4 == 6:
                target = socket.inet_ntop(socket.AF_INET6, packet[24:40])
                if target != "::1" and not target.startswith("ff02:"):  # the kernel's own
                    self.seen.add(f"packet to {target}, protocol {packet[6]}")


def main() -> None:
    """Run the order."""
    order: dict[str, Any] = json.loads(sys.argv[1])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "route", "add", "local", "default", "dev", "lo"], check=True)  # every address is here
    calls = Calls()
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    sniffer.bind(("lo", 0))
    listening = [(calls.names, names), (calls.packets, sniffer)]
    listening += [(calls.connections, socket.create_server(("0.0.0.0", port))) for port in (80, 443)]
    for function, sock in listening:
        threading.Thread(target=function, args=(sock,), daemon=True).start()
    if order.get("check"):  # that all of this notices something
        socket.create_connection(("somebody.example", 443)).close()
    printed = "".join(run(**each) for each in order["commands"])
    time.sleep(0.5)  # for what is on its way
    print(json.dumps({"calls": sorted(calls.seen), "printed": printed}))


def run(*, command: list[str], until: str = "", seconds: float = 0.0) -> str:
    """Run a command to its end; or until it prints a text and that many seconds longer."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not until:
        return process.communicate()[0]
    line = ""
    for line in process.stdout:
        if until in line:
            time.sleep(seconds)
            break
    process.terminate()
    process.wait()
    return line


if __name__ == "__main__":
    main()
