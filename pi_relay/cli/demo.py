"""`pi-relay demo`: a relay, a stand-in smart host and a pretend printer, all real processes and sockets.

Rules: everything lies in one temporary folder and listens on loopback; whatever happens, Ctrl-C included, the
processes are ended and the folder is removed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from types import FrameType

from pi_relay.cli import trace
from pi_relay.cli.output import FAILED, OK, CliError, coloured, size_text
from pi_relay.cli.texts import t
from pi_relay.folders import state_directory

SCAN_SIZE_BYTES = 3_700_000  # as base64 in a message: 5 MB
START_TIMEOUT_SECONDS = 60  # a small machine lays the queue's journal out at its first start
ARRIVAL_TIMEOUT_SECONDS = 60
END_TIMEOUT_SECONDS = 15

_CONFIGURATION = """\
hostname = "relay.demo.example"
postmaster = "admin@demo.example"

[[listeners]]
address = "127.0.0.1:{port}"
tls = "off"

[smart_hosts.sink]
host = "127.0.0.1"
port = {sink_port}
tls = "off"

[queue]
free_space_min = "16 MB"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Start a relay and a stand-in smart host in a temporary folder, let a pretend printer send a scan of"
        " 5 MB, and show how it arrives. Nothing of it is left behind."
    )
    parser.epilog = t("example:") + "\n  pi-relay demo"


def run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _interrupted)
    with ExitStack() as cleaning:
        try:
            _play(cleaning)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not stop the cleaning
    print(coloured(t("Byte for byte the same. Nothing of this demo is left behind."), "green"))
    return OK


def _play(cleaning: ExitStack) -> None:
    folder = Path(cleaning.enter_context(tempfile.TemporaryDirectory(prefix="pi-relay-demo-")))
    stage = Stage(folder, cleaning)
    with _step(t("a stand-in smart host")):
        sink_port = stage.start_sink()
    with _step(t("a relay")):
        port = stage.start_relay(sink_port)
    scan = secrets.token_bytes(SCAN_SIZE_BYTES)
    message = _message(scan)
    with _step(t("a pretend printer sends a scan of {size}", size=size_text(len(message)))):
        queue_id = _print_scan(port, message)
    with _step(t("the scan arrives at the smart host")):
        arrived = stage.arrived()
    _tell_trail(queue_id)
    _compare(scan, arrived)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Says what is going on, and how long it took."""
    print(f"{what} ...", end=" ", flush=True)
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        print()
        raise
    print(coloured(f"{time.monotonic() - begun:.1f} s", "faint"), flush=True)


class Stage:
    """The processes and their folder."""

    def __init__(self, folder: Path, cleaning: ExitStack) -> None:
        self._folder = folder
        self._cleaning = cleaning
        self._maildir = folder / "smart-host"
        for variable, name in (("STATE_DIRECTORY", "state"), ("RUNTIME_DIRECTORY", "run")):
            (folder / name).mkdir(mode=0o700)
            os.environ[variable] = str(folder / name)  # for the children, and for trace

    def start_sink(self) -> int:
        """Its port."""
        process = self._start("sink", "--address", "127.0.0.1:0", "--maildir", str(self._maildir))
        log = self._folder / "sink.log"
        _wait(lambda: ":" in log.read_text(), process, log)
        return int(log.read_text().partition("127.0.0.1:")[2].partition(",")[0])

    def start_relay(self, sink_port: int) -> int:
        """The port where it takes mail."""
        port = _free_port()
        file = self._folder / "pi-relay.toml"
        file.write_text(_CONFIGURATION.format(port=port, sink_port=sink_port))
        process = self._start("-c", str(file), "serve")
        _wait(lambda: _greets(port), process, self._folder / "serve.log")
        return port

    def arrived(self) -> bytes:
        """The message that the smart host took."""
        _wait(lambda: any((self._maildir / "new").iterdir()), None, self._folder / "serve.log")
        return next((self._maildir / "new").iterdir()).read_bytes()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        verb = next(argument for argument in arguments if argument in ("sink", "serve"))
        with (self._folder / f"{verb}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pi_relay", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                start_new_session=True,  # Ctrl-C is for us: we end them in order
            )
        self._cleaning.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(is_so: Callable[[], bool], process: subprocess.Popen[bytes] | None, log: Path) -> None:
    timeout_seconds = START_TIMEOUT_SECONDS if process else ARRIVAL_TIMEOUT_SECONDS
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        if time.monotonic() > deadline or (process and process.poll() is not None):
            raise CliError(FAILED, t("that did not work"), log.read_text()[-2000:])
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(4) == b"220 "
    except OSError:
        return False


def _message(scan: bytes) -> bytes:
    """What a scanner sends: a line of text and one large attachment."""
    message = EmailMessage(policy=policy.SMTP)
    message["From"] = "Copier 2F <copier@demo.example>"
    message["To"] = "ann@demo.example"
    message["Subject"] = "Scan"
    message.set_content("Scanned by Copier 2F.")
    message.add_attachment(scan, maintype="application", subtype="pdf", filename="scan.pdf")
    return message.as_bytes()


def _print_scan(port: int, message: bytes) -> str:
    """Submit as a printer does; the queue id from the relay's answer."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="copier-2f", timeout=30) as printer:
        printer.ehlo()
        printer.mail("copier@demo.example")
        printer.rcpt("ann@demo.example")
        code, words = printer.data(message)
    if code != 250:
        raise CliError(FAILED, t("the relay refused the scan: {reply}", reply=f"{code} {words.decode()}"))
    return words.decode().split()[-1]


def _tell_trail(queue_id: str) -> None:
    """What the mail log says of it; the last line may come a moment after the mail itself."""
    deadline = time.monotonic() + END_TIMEOUT_SECONDS
    while True:
        events = trace.history(state_directory() / "log", queue_id)
        if any(event["event"] == "relayed" for event in events) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    print(t("Its trail, as pi-relay trace {queue_id} tells it:", queue_id=queue_id))
    trace.print_events(events, indent="  ")


def _compare(scan: bytes, arrived: bytes) -> None:
    parts = message_from_bytes(arrived, policy=policy.SMTP).walk()
    received = next((part.get_content() for part in parts if part.get_filename() == "scan.pdf"), b"")
    print(t("sent:    scan.pdf, {size}, sha256 {digest}", **_identity(scan)))
    print(t("arrived: scan.pdf, {size}, sha256 {digest}", **_identity(received)))
    if received != scan:
        raise CliError(FAILED, t("what arrived is not what was sent"))


def _identity(data: bytes) -> dict[str, str]:
    return {"size": size_text(len(data)), "digest": hashlib.sha256(data).hexdigest()[:16]}
