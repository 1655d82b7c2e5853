"""A machine's network of its own: namespaces that are joined by cables, and commands that run in them.

Needs root, and ``ip``, ``unshare`` and ``nsenter``; ``possible()`` says whether all is there.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


def possible() -> bool:
    tools = all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter"))
    return tools and os.geteuid() == 0 and subprocess.run(["unshare", "--net", "true"]).returncode == 0


class Namespace:
    """Lives as long as its holder, a process that sleeps in it. Loopback is up."""

    def __enter__(self) -> Namespace:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo here; exec sleep 600"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.ip("link set lo up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()

    def command(self, *arguments: str | Path) -> list[str]:
        """To be run from outside: it runs inside."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *map(str, arguments)]

    def ip(self, words: str) -> None:
        subprocess.run(self.command("ip", *words.split()), check=True, capture_output=True, timeout=20)

    def mac(self, interface: str) -> str:
        command = self.command("ip", "-json", "link", "show", "dev", interface)
        (link,) = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=20).stdout)
        return str(link["address"])

    def cable(self, name: str, other: Namespace) -> None:
        """An interface of this name here, and one there; both are up."""
        self.ip(f"link add {name} type veth peer name {name} netns {other._holder.pid}")
        for end in (self, other):
            end.ip(f"link set {name} up")

    def smtp(self, source: str, host: str, port: int, *lines: str) -> str:
        """What a client at ``source`` hears last; "" where it is not even greeted."""
        done = subprocess.run(
            self.command(sys.executable, "-c", _CLIENT, source, host, str(port), *lines),
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return done.stdout


_CLIENT = """
import socket, sys
source, host, port, *lines = sys.argv[1:]
said = ""
try:
    with socket.create_connection((host, int(port)), 5, source_address=(source, 0)) as client:
        replies = client.makefile("r")
        said = replies.readline()
        for line in lines:
            client.sendall(line.encode() + b"\\r\\n")
            said = replies.readline() or said
except OSError:
    pass
print(said, end="")
"""


_CLONE_NEWNET = 0x40000000


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network of its own: all of 127/8, and every port, is free.

    Names are looked up nowhere; whoever needs the machine's network again has to wait.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:  # noqa: PTH123
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
            yield
        finally:
            libc.setns(before.fileno(), _CLONE_NEWNET)
