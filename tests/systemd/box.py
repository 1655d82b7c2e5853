"""A machine with pi-relay installed from this source: unit, user, file, and a smart host beside it."""

from __future__ import annotations

import json
import re
import shutil
import sysconfig
import time
from pathlib import Path
from typing import Any

from tests.support.processes import wait_until
from tests.support.systemd_machine import Machine, tree

SOURCE = Path(__file__).parents[2]
HERE = Path(__file__).parent
LIBRARY = "/usr/lib/pi-relay"
# What Debian 12 lacks, from the environment that runs the tests: no extension modules among them.
WHEELS = ("aiosmtpd", "aiosmtplib", "dns", "public", "attr", "attrs")

CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
[submission]
connections_max = 400
connections_per_client_max = 400
messages_per_hour_max = 0
[smart_hosts.isp]
host = "127.0.0.1"
port = 2526
tls = "off"
sender = "relay@office.example"
[queue]
free_space_min = "16 MB"
"""


class Box(Machine):
    """``fault``: what goes wrong at SIGUSR1 (faulty.py); then the watchdog is impatient, too."""

    def __init__(
        self, directory: Path, *, suite: str = "trixie", fault: str = "", configuration: str = ""
    ) -> None:
        super().__init__(tree(suite), directory)
        self._install(suite)
        self.configure(configuration or CONFIGURATION)
        if fault:
            self.put(f"{LIBRARY}/faulty.py", (HERE / "faulty.py").read_bytes())
            self.drop_in(
                f"Environment=FAULT={fault}\nExecStart=\nExecStart=/usr/bin/python3 {LIBRARY}/faulty.py\n"
                "WatchdogSec=2s\nRestartSec=100ms\n"
            )

    def _install(self, suite: str) -> None:
        shutil.copytree(
            SOURCE / "pi_relay",
            self.root / f"{LIBRARY[1:]}/pi_relay",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        if suite == "bookworm":
            for name in WHEELS:
                wheel = Path(sysconfig.get_path("purelib"), name)
                shutil.copytree(
                    wheel, self.root / LIBRARY[1:] / name, ignore=shutil.ignore_patterns("__pycache__")
                )
        for folder in ("usr", "usr/lib", LIBRARY[1:]):
            (self.root / folder).chmod(0o755)
        self.put("/usr/bin/pi-relay", (SOURCE / "scripts/debian/bin/pi-relay").read_bytes(), 0o755)
        for name, place in (
            ("service", "system/pi-relay.service"),
            ("sysusers", "../sysusers.d/pi-relay.conf"),
            ("tmpfiles", "../tmpfiles.d/pi-relay.conf"),
        ):
            path = Path("/usr/lib/systemd", place).resolve(strict=False)
            self.put(str(path), (SOURCE / f"systemd/pi-relay.{name}").read_bytes())
        wants = self.put("/etc/systemd/system/multi-user.target.wants/.made", "").parent
        (wants / "pi-relay.service").symlink_to("/usr/lib/systemd/system/pi-relay.service")
        self.put(f"{LIBRARY}/submit.py", (HERE / "submit.py").read_bytes())

    def configure(self, text: str) -> None:
        self.put("/etc/pi-relay/pi-relay.toml", text)

    def drop_in(self, text: str) -> None:
        self.put("/etc/systemd/system/pi-relay.service.d/test.conf", f"[Service]\n{text}")

    # ── the relay ────────────────────────────────────────────────────────────────────────────────

    def relay(self, *arguments: str, check: bool = True) -> str:
        return self.run("pi-relay", *arguments, check=check)

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.relay(*arguments, "--json"))

    def status_line(self) -> str:
        return self.show("pi-relay", "StatusText")

    @property
    def relay_pid(self) -> int:
        """As the machine counts; 0 while there is none."""
        return int(self.show("pi-relay", "MainPID"))

    def is_ready(self) -> bool:
        return self.show("pi-relay", "ActiveState") == "active"

    def provoke(self) -> int:
        """Let the fault happen; the process that it happens to."""
        pid = self.relay_pid
        self.run("systemctl", "kill", "--signal=SIGUSR1", "--kill-whom=main", "pi-relay")
        return pid

    def wait_for_restart(self, pid: int, timeout_seconds: float = 40) -> None:
        wait_until(
            lambda: self.relay_pid not in (0, pid) and self.is_ready(), timeout_seconds, "another relay"
        )

    def submit(self, count: int = 1, *, timeout_seconds: float = 30, check: bool = True) -> list[str]:
        """So many messages, one after the other; the queue ids of those that were taken."""
        words = self.run(
            "python3", f"{LIBRARY}/submit.py", str(count), timeout_seconds=timeout_seconds, check=check
        )
        return re.findall(r"queued as (\w+)", words)

    def queue_ids(self) -> set[str]:
        return {message["queue_id"] for message in self.ask("queue", "list")}

    def open_smart_host(self, *options: str) -> Path:
        """`pi-relay sink`; where it keeps what it takes (as this host sees it)."""
        sink = ("pi-relay", "sink", "--address", "127.0.0.1:2526", "--maildir", "/run/sink", *options)
        self.run("systemd-run", "--quiet", "--unit=sink", "--property=StandardOutput=null", *sink)
        wait_until(lambda: (self.root / "run/sink/new").exists(), 20, "the smart host")
        return self.root / "run/sink/new"

    def journal(self, *arguments: str) -> str:
        """What the journal has of the relay, once it has written down all that it was told."""
        self.run("journalctl", "--sync", check=False)
        time.sleep(0.1)
        return self.run("journalctl", "--unit=pi-relay", "--no-pager", *arguments)
