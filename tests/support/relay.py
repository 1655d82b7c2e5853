"""The real daemon as a process of its own: started, asked, stopped or killed, as an admin would.

It knows the command line and pi-relay.toml, nothing of the insides.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import free_port, greeting, wait_until

PI_RELAY = Path(sys.executable).with_name("pi-relay")

# A relay on loopback for one smart host, with no limits in the way of a load.
_CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[[listeners]]
address = "127.0.0.1:{port}"

[submission]
networks = ["local"]
message_size_max = "64 MB"
connections_max = {connections_max}
connections_per_client_max = 400
messages_per_hour_max = 0
{submission_extra}

[smart_hosts.office]
host = "127.0.0.1"
port = {smart_host_port}
tls = "{smart_host_tls}"
{smart_host_extra}

[queue]
free_space_min = "16 MB"
{queue_extra}
"""


class Relay:
    """``pi-relay serve`` below ``directory``; its state and queue may lie elsewhere (``state_directory``).

    ``smart_host_extra``, ``submission_extra`` and ``queue_extra`` are lines of TOML for those tables;
    ``configuration`` replaces the whole file.
    """

    def __init__(
        self,
        directory: Path,
        *,
        smart_host_port: int = 0,
        port: int = 0,
        state_directory: Path | None = None,
        smart_host_tls: str = "off",
        smart_host_extra: str = "",
        connections_max: int = 400,
        submission_extra: str = "",
        queue_extra: str = "",
        configuration: str | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.state_directory = state_directory or directory / "state"
        self.queue_directory = self.state_directory / "queue"
        self.log = directory / "stderr.log"
        self.file = directory / "pi-relay.toml"
        self.file.write_text(
            configuration
            or _CONFIGURATION.format(
                port=self.port,
                smart_host_port=smart_host_port,
                smart_host_tls=smart_host_tls,
                smart_host_extra=smart_host_extra,
                connections_max=connections_max,
                submission_extra=submission_extra,
                queue_extra=queue_extra,
            )
        )
        runtime_directory = directory / "run"
        for folder in (self.state_directory, runtime_directory):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.environment = {
            **os.environ,
            "STATE_DIRECTORY": str(self.state_directory),
            "RUNTIME_DIRECTORY": str(runtime_directory),
            "NOTIFY_SOCKET": str(runtime_directory / "notify.sock"),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notifications.bind(self.environment["NOTIFY_SOCKET"])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout_seconds: float = 60) -> None:
        """Returns once it has told the service manager READY=1, and greets."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PI_RELAY, "-c", self.file, "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._is_ready, timeout_seconds, "READY=1 from pi-relay")
            wait_until(self._greets, timeout_seconds, "pi-relay to greet")
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_seconds: float = 30) -> int:
        """SIGTERM; its exit code."""
        return self._end(signal.SIGTERM, timeout_seconds)

    def reload(self, configuration: str) -> None:
        """Put another file in its place, and have it read."""
        self.file.write_text(configuration)
        self.command("reload")

    def kill(self) -> None:
        """SIGKILL, at whatever it is doing."""
        self._end(signal.SIGKILL, 30)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the relay is not running"
        return self._process.pid

    def ask(self, *arguments: str) -> Any:
        """What a command with ``--json`` says."""
        return json.loads(self.command(*arguments, "--json").stdout)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One ``pi-relay`` command against this relay; it must succeed."""
        result = subprocess.run(
            [PI_RELAY, "-c", self.file, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if result.returncode:
            words = f"{result.stdout}{result.stderr}"
            raise RuntimeError(f"pi-relay {' '.join(arguments)}: exit {result.returncode}: {words}")
        return result

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            words = self.log.read_text()[-2000:]
            raise RuntimeError(f"pi-relay ended with {self._process.returncode}: {words}")
        try:
            return b"READY=1" in self._notifications.recv(4096)
        except BlockingIOError:
            return False

    def notifications(self) -> list[str]:
        """What it has told the service manager since the last call."""
        said = []
        while True:
            try:
                said.append(self._notifications.recv(4096).decode())
            except BlockingIOError:
                return said

    def _greets(self) -> bool:
        return greeting(self.port).startswith(b"220")

    def _end(self, how: signal.Signals, timeout_seconds: float) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(how)
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None
