"""A machine of its own under a real systemd: a minimal Debian tree, booted by systemd-nspawn.

``tree("trixie")`` makes the tree (once: it is kept in a cache outside the repository); ``Machine`` boots it
with a writable layer on top, so that the tree itself never changes, and many machines share it. A machine has
namespaces of its own: processes, mounts, control groups, and a network with loopback only, all ports free.

    with Machine(tree("trixie"), tmp_path) as machine:
        machine.run("systemctl", "is-system-running", check=False)

Needs root and the Debian packages mmdebstrap and systemd-container (``why_not()`` says what is missing).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.support.processes import family, wait_until

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "python3",
    "python3-cryptography",
    "python3-sdnotify",
    "python3-tomli-w",
)
MORE_PACKAGES = {
    "trixie": ("python3-aiosmtpd", "python3-aiosmtplib", "python3-dnspython"),
    "bookworm": ("python3-attr", "python3-public"),  # what it has of the others is too old
}
_WITHOUT = ("man", "locale", "doc", "info", "lintian")

# In namespaces of its own: a control-group tree for this systemd, the layers, and then systemd itself.
_BOOT = """
ip link set lo up
umount -R /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
exec systemd-nspawn --quiet --directory="$2/root" --machine=machine \
  --register=no --keep-unit --console=read-only --boot
"""


def why_not() -> str:
    """Why no machine can be booted here, "" where one can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [
        program for program in ("mmdebstrap", "systemd-nspawn", "unshare") if not shutil.which(program)
    ]
    return f"needs {', '.join(missing)}" if missing else ""


def tree(suite: str) -> Path:
    """The root file system of a Debian release with what pi-relay needs of it, made at the first call."""
    command = [
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        f"--include={','.join((*PACKAGES, *MORE_PACKAGES[suite]))}",
        '--aptopt=Apt::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _WITHOUT),
        # Else systemd would take each boot for the first.
        "--customize-hook=head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n' >$1/etc/machine-id",
        suite,
    ]
    key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache", "pi-relay-tests")
    made = cache / f"{suite}-{key}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f".{suite}-{os.getpid()}"
        result = subprocess.run(
            [*command, str(unfinished)], capture_output=True, text=True, timeout=900, check=False
        )
        if result.returncode:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RuntimeError(f"mmdebstrap: {result.stderr[-2000:]}")
        try:
            unfinished.rename(made)
        except OSError:  # another run of the tests was quicker
            shutil.rmtree(unfinished)
    return made


class Machine:
    """``root``: its file system, as seen from here; before ``boot`` only what is to lie over the tree."""

    def __init__(self, tree: Path, directory: Path) -> None:
        self._tree = tree
        self._directory = directory
        for name in ("upper", "work", "root"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "upper").chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Machine:
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self._leader}/root") if self._leader else self._directory / "upper"

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> Path:
        """Write a file of root's; folders that are missing are made."""
        place = self.root / path.lstrip("/")
        for folder in reversed(place.parents):
            if not folder.exists():
                folder.mkdir(mode=0o755)
                folder.chmod(0o755)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        place.chmod(mode)
        return place

    def boot(self, timeout_seconds: float = 60) -> None:
        """Returns once systemd has started what is enabled."""
        console = (self._directory / "console.log").open("ab")
        self._process = subprocess.Popen(
            ["unshare", "-mCn", "bash", "-c", _BOOT, "boot", self._tree, self._directory],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
        console.close()
        try:
            wait_until(self._find_leader, timeout_seconds, "systemd-nspawn")
            wait_until(self._is_up, timeout_seconds, "the machine to boot")
        except BaseException:
            self.cut_power()
            raise

    def run(
        self, *command: str, stdin: str | bytes = b"", timeout_seconds: float = 60, check: bool = True
    ) -> str:
        """Run a command as root in the machine; what it says on both streams."""
        result = subprocess.run(
            [*self.enter(), *command],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
        words = result.stdout.decode("utf-8", "replace")
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {result.returncode}: {words}")
        return words

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A command that goes on beside (its words: ``stdout``); it ends with the machine at the latest."""
        return subprocess.Popen(
            [*self.enter(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def enter(self) -> list[str]:
        """What stands before a command that is to run in the machine."""
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_PAGER=cat"]
        return ["nsenter", f"--target={self._leader}", "--all", "--", *environment]

    def show(self, unit: str, key: str) -> str:
        """A property of a unit (systemctl show)."""
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).strip()

    def power_off(self, timeout_seconds: float = 60) -> None:
        """An orderly shutdown."""
        assert self._process is not None
        self.run("systemctl", "poweroff", "--no-block", check=False)
        self._process.wait(timeout_seconds)
        self._process, self._leader = None, 0

    def cut_power(self) -> None:
        """Everything in there ends at once. What was written stays: this host has not lost its memory."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            if self._leader:
                os.kill(self._leader, 9)
            else:
                process.kill()
            process.wait(30)
        self._leader = 0

    def console(self) -> str:
        return (self._directory / "console.log").read_text(errors="replace")

    def _find_leader(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"systemd-nspawn ended: {self.console()[-2000:]}")
        for pid in family(self._process.pid):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            if any(line.startswith("NSpid:") and line.split()[2:] == ["1"] for line in status.splitlines()):
                self._leader = pid
                return True
        return False

    def _is_up(self) -> bool:
        words = self.run("systemctl", "is-system-running", check=False).strip()
        time.sleep(0.05)
        return words in ("running", "degraded")
