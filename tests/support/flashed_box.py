"""A box from an image of image/build, in QEMU: files dropped on the flashed card as from a PC, then started.

    with FlashedBox(image, tmp_path) as box:          # a copy of the image: the image itself never changes
        box.drop("pi-relay.toml", toml)
        box.start()
        box.run("findmnt -no OPTIONS /")

With ``lan="192.168.77.5"`` it hangs on the one cable of the caller's network (``CABLE``; see ``office``), and
has that address there if a network.txt gives it.

amd64 starts by itself from its disk (BIOS). No firmware of a Pi starts QEMU's boards of arm64: kernel,
initial RAM disk and device tree are taken out of the boot partition. "virt" is what QEMU emulates best, with
the memory of a small Pi; "raspi3b" is a Pi 3 B with its own card slot and USB, but at the USB another network
adapter than a real one has.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.namespaces import own_network
from tests.support.processes import free_port, greeting, wait_until

BOOT_OFFSET = "4M"
CARD_BYTES = 2 * 1024**3  # QEMU takes a power of two only for a card slot
CABLE = "box"
_ENVIRONMENT = ["env", "MTOOLS_SKIP_CHECK=1"]


@contextmanager
def office(*addresses: str) -> Iterator[None]:
    """This thread is a PC in a network of its own, with these addresses at its end of the box's cable."""
    with own_network():
        for words in (f"tuntap add dev {CABLE} mode tap", f"link set {CABLE} up"):
            subprocess.run(["ip", *words.split()], check=True, timeout=20)
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            subprocess.run(["ip", "address", "add", address, "dev", CABLE, *nodad], check=True, timeout=20)
        yield


def why_not(arch: str) -> str:
    """Why no box of this architecture can be started here, "" where one can."""
    program = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[arch]
    missing = [name for name in (program, "mcopy", "ssh", "ssh-keygen") if not shutil.which(name)]
    return f"needs {', '.join(missing)}: scripts/setup --image installs it" if missing else ""


@dataclass(frozen=True)
class Board:
    """A machine of QEMU's, and by which of its options it gets which files of the boot partition."""

    program: tuple[str, ...]
    drive: str
    devices: tuple[str, ...]
    started_with: Mapping[str, str] = field(default_factory=dict)
    console: str = ""
    kernel_options: str = ""


_SMALL_PI = ("-m", "512", "-smp", "2", "-serial", "stdio")
_VIRTIO = (
    *("-device", "virtio-blk-pci,drive=card", "-device", "virtio-net-pci,netdev=n"),
    *("-device", "virtio-rng-pci"),
)
_KERNEL = {"-kernel": "vmlinuz", "-initrd": "initrd.img"}
BOARDS = {
    "pc": Board(("qemu-system-x86_64", "-M", "q35", *_SMALL_PI), "if=none,id=card", _VIRTIO),
    "virt": Board(
        ("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", *_SMALL_PI),
        "if=none,id=card",
        _VIRTIO,
        _KERNEL,
        "ttyAMA0",
    ),
    "raspi3b": Board(
        # The first serial port is the one that Bluetooth has.
        ("qemu-system-aarch64", "-M", "raspi3b", "-serial", "null", "-serial", "stdio"),
        "if=sd",
        ("-device", "usb-net,netdev=n"),
        {**_KERNEL, "-dtb": "bcm2837-rpi-3-b.dtb"},
        "ttyS1,115200",
        "systemd.watchdog_sec=0",  # QEMU's watchdog resets the board at the moment when it is armed
    ),
}


class Card:
    """A flashed card, as a PC sees it: its boot partition, a FAT."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def drop(self, name: str, data: str | bytes) -> None:
        content = data.encode() if isinstance(data, str) else data
        self._mtools("mcopy", "-o", "-", target=name, stdin=content)

    def read(self, name: str) -> bytes | None:
        """None: there is no such file."""
        result = self._mtools("mtype", target=name, check=False)
        return result.stdout if result.returncode == 0 else None

    def names(self, folder: str = "") -> list[str]:
        listing = self._mtools("mdir", "-b", target=folder).stdout.decode()
        return [line.removeprefix("::/") for line in listing.splitlines() if line.startswith("::/")]

    def _mtools(
        self, *command: str, target: str, stdin: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        program, *options = command
        arguments = [program, "-i", f"{self.image}@@{BOOT_OFFSET}", *options, f"::{target}"]
        return subprocess.run(
            [*_ENVIRONMENT, *arguments], input=stdin, capture_output=True, check=check, timeout=120
        )


class FlashedBox(Card):
    """``mail_port`` and ``tls_port`` of ``host`` (loopback, but on a LAN) lead to the guest's 587 and 465."""

    def __init__(
        self,
        image: Path,
        directory: Path,
        *,
        board: str = "pc",
        card_bytes: int = CARD_BYTES,
        lan: str = "",
    ) -> None:
        super().__init__(directory / "card.img")
        self._directory = directory
        self._board = BOARDS[board]
        subprocess.run(["cp", "--sparse=always", image, self.image], check=True)
        with self.image.open("r+b") as card:
            card.truncate(card_bytes)
        self.key = directory / "key"
        if not self.key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.host = lan or "127.0.0.1"
        self._on_lan = bool(lan)
        self.mail_port, self.tls_port, self._ssh_port = (
            (587, 465, 22) if lan else (free_port(), free_port(), free_port())
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FlashedBox:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    @property
    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text()

    @property
    def console(self) -> str:
        path = self._directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *, timeout_seconds: float = 600, wait: bool = True) -> float:
        """Switch on; returns the seconds until port 587 greeted."""
        started_at = time.monotonic()
        with (self._directory / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        if wait:
            wait_until(
                self._greets, timeout_seconds, f"the box to greet; its console:\n{self.console[-3000:]}"
            )
        return time.monotonic() - started_at

    def run(
        self, command: str, *, timeout_seconds: float = 300, check: bool = True, stdin: bytes = b""
    ) -> str:
        """By SSH as admin; what the command says on both streams."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            result = subprocess.run(
                [*self.ssh(), command],
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_seconds,
                check=False,
            )
            if result.returncode != 255 or time.monotonic() > deadline:
                break
            time.sleep(2)  # it does not answer yet
        words = result.stdout.decode("utf-8", "replace")
        if check and result.returncode:
            raise RuntimeError(f"{command}: exit {result.returncode}: {words}")
        return words

    def power_off(self, timeout_seconds: float = 180) -> None:
        """An orderly shutdown."""
        assert self._process is not None
        self.run("sudo systemctl poweroff --no-block", check=False)
        self._process.wait(timeout_seconds)
        self._process = None

    def wait_for_end(self, timeout_seconds: float) -> None:
        """The guest switches itself off, or restarts (QEMU runs with -no-reboot)."""
        assert self._process is not None
        self._process.wait(timeout_seconds)
        self._process = None

    def cut_power(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(30)

    def _greets(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"QEMU ended:\n{self.console[-3000:]}")
        if greeting(self.mail_port, 20, host=self.host).startswith(b"220"):
            return True
        time.sleep(0.5)
        return False

    def ssh(self, *more: str, user: str = "admin") -> list[str]:
        """The command of an SSH client that has the key, with options of its own."""
        quiet = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        options = [f"-o{each}" for each in (*quiet, "ConnectTimeout=30", "BatchMode=yes")]
        return ["ssh", "-i", str(self.key), "-p", str(self._ssh_port), *options, *more, f"{user}@{self.host}"]

    def _network(self) -> str:
        if self._on_lan:
            return f"tap,id=n,ifname={CABLE},script=no,downscript=no"
        ports = ((self.mail_port, 587), (self.tls_port, 465), (self._ssh_port, 22))
        return "user,id=n" + "".join(f",hostfwd=tcp:127.0.0.1:{ours}-:{theirs}" for ours, theirs in ports)

    def _command(self) -> list[str]:
        board = self._board
        command = [
            *(*board.program, "-nographic", "-no-reboot", "-monitor", "none"),
            *("-drive", f"file={self.image},format=raw,cache=writethrough,{board.drive}"),
            *("-netdev", self._network(), *board.devices),
        ]
        for option, name in board.started_with.items():
            part = self._directory / name
            part.write_bytes(self.read(name) or b"")
            command += [option, str(part)]
        if board.started_with:
            line = (self.read("cmdline.txt") or b"").decode().strip().replace("ttyS1,115200", board.console)
            command += ["-append", f"{line} {board.kernel_options}"]
        return command
