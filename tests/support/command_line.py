"""`pi-relay` as a process of its own, and a scripted relay for it to ask."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pi_relay.control import SOCKET_NAME, ControlServer, Handler


class CommandLine:
    """Runs commands with state, runtime folder and configuration below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.state_directory = directory / "state"
        self.runtime_directory = directory / "run"
        self.file = directory / "pi-relay.toml"
        for folder in (self.state_directory, self.runtime_directory):
            folder.mkdir(exist_ok=True)
        self.file.write_text(
            'hostname = "relay.office.example"\n'
            'postmaster = "admin@office.example"\n'
            '[smart_hosts.isp]\nhost = "smtp.isp.example"\n'
        )

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {
            **kept,
            "STATE_DIRECTORY": str(self.state_directory),
            "RUNTIME_DIRECTORY": str(self.runtime_directory),
            "PI_RELAY_CONFIG": str(self.file),
            "LANG": "C.UTF-8",
            **more,
        }

    def __call__(
        self, *arguments: str, input: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pi_relay", *arguments],
            input=input,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def relay(self, handlers: Mapping[str, Handler]) -> Iterator[None]:
        """A relay that answers with these handlers, in a thread of this process."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        server = ControlServer(self.runtime_directory / SOCKET_NAME, handlers)
        try:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
            yield
        finally:
            asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    def binary(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """The same, where what comes out is no text."""
        return subprocess.run(
            [sys.executable, "-m", "pi_relay", *arguments],
            stdin=subprocess.DEVNULL,
            env=self.environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )

    def on_terminal(self, typed: bytes, *arguments: str) -> tuple[int, bytes]:
        """Exit code and screen of a command at a terminal where somebody types."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "pi_relay", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=self.environment(),
            start_new_session=True,
        )
        os.close(theirs)
        lines = typed.splitlines(keepends=True)
        screen = b""
        with suppress(OSError):  # EIO: the other side is closed
            while data := os.read(ours, 4096):
                screen += data
                if screen.endswith((b": ", b"] ")) and lines:
                    os.write(ours, lines.pop(0))
        os.close(ours)
        return process.wait(60), screen
