"""A private Postfix: configuration, queue and data folders of its own, one loopback port.

As next hop it delivers into a Maildir, as relay it hands on to a smart host; otherwise it is as its authors
ship it. It needs root, as every Postfix does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import free_port, greeting, wait_until

# The services of the stock master.cf that a relay uses, with their stock limits, none in a chroot.
_SERVICES = """
127.0.0.1:{port} inet  n  -  n  -     -  smtpd
pickup     unix  n  -  n  60    1  pickup
cleanup    unix  n  -  n  -     0  cleanup
qmgr       unix  n  -  n  300   1  qmgr
tlsmgr     unix  -  -  n  1000? 1  tlsmgr
rewrite    unix  -  -  n  -     -  trivial-rewrite
bounce     unix  -  -  n  -     0  bounce
defer      unix  -  -  n  -     0  bounce
trace      unix  -  -  n  -     0  bounce
verify     unix  -  -  n  -     1  verify
flush      unix  n  -  n  1000? 0  flush
proxymap   unix  -  -  n  -     -  proxymap
smtp       unix  -  -  n  -     -  smtp
relay      unix  -  -  n  -     -  smtp
showq      unix  n  -  n  -     -  showq
error      unix  -  -  n  -     -  error
retry      unix  -  -  n  -     -  error
discard    unix  -  -  n  -     -  discard
virtual    unix  -  n  n  -     -  virtual
anvil      unix  -  -  n  -     1  anvil
scache     unix  -  -  n  -     1  scache
postlog    unix-dgram n  -  n  -  1  postlogd
"""


class Postfix:
    """One instance, in a folder below /tmp that goes with it: its processes run as users of their own, which
    could not reach one below a test's.

    ``smart_host_port``: everything is handed on to that loopback port; without it, everything is delivered
    into ``self.maildir``. ``parameters`` go to main.cf as they are. The queue may lie elsewhere (an SD card).
    ``dns_server``: an address that it asks instead of the machine's (in a mount namespace of its own).
    """

    def __init__(
        self,
        *,
        port: int = 0,
        smart_host_port: int | None = None,
        parameters: Mapping[str, str] | None = None,
        queue_directory: Path | None = None,
        dns_server: str = "",
    ) -> None:
        directory = Path(tempfile.mkdtemp(prefix="postfix-"))
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)
        self.port = port or free_port()
        self.configuration = directory / "etc"
        self.queue_directory = queue_directory or directory / "queue"
        self.maildir = directory / "Maildir"
        self._resolv_conf = directory / "resolv.conf" if dns_server else None
        if self._resolv_conf is not None:
            self._resolv_conf.write_text(f"nameserver {dns_server}\n")
        self._parameters = {
            "compatibility_level": "3.6",
            "queue_directory": str(self.queue_directory),
            "data_directory": str(directory / "data"),
            "myhostname": "postfix.office.example",
            "mydestination": "",
            "alias_maps": "",
            "alias_database": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            **(_relaying_to(smart_host_port) if smart_host_port else _delivering_to(self.maildir)),
            **(parameters or {}),
        }

    def __enter__(self) -> Postfix:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once it greets."""
        self._lay_out()
        self._postfix("start")
        wait_until(lambda: greeting(self.port).startswith(b"220"), 30, "Postfix to greet")

    def stop(self) -> None:
        self._postfix("stop")

    def flush(self) -> None:
        """Try everything that is deferred, now."""
        subprocess.run(["postqueue", "-c", str(self.configuration), "-f"], check=True)

    @property
    def inbox(self) -> Path:
        """Where what it has delivered lies, a file a message."""
        return self.maildir / "new"

    @property
    def pid(self) -> int:
        return int((self.queue_directory / "pid" / "master.pid").read_text())

    def _postfix(self, command: str) -> None:
        result = subprocess.run(
            [*self._with_resolv_conf(), "postfix", "-c", str(self.configuration), command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            log = self.maildir.parent / "maillog"
            words = log.read_text()[-2000:] if log.exists() else ""
            raise RuntimeError(f"postfix {command} failed: {result.stdout}{words}")

    def _with_resolv_conf(self) -> list[str]:
        """The beginning of a command that sees that file in the place of /etc/resolv.conf."""
        if self._resolv_conf is None:
            return []
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(self._resolv_conf)]

    def _lay_out(self) -> None:
        self.configuration.mkdir(parents=True, exist_ok=True)
        self.queue_directory.mkdir(parents=True, exist_ok=True)
        data_directory = Path(self._parameters["data_directory"])
        data_directory.mkdir(exist_ok=True)
        shutil.chown(data_directory, "postfix", "postfix")
        main = "".join(f"{name} = {value}\n" for name, value in self._parameters.items())
        (self.configuration / "main.cf").write_text(main)
        (self.configuration / "master.cf").write_text(_SERVICES.format(port=self.port))
        for folder in self.queue_directory.parents:
            if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)


def _relaying_to(port: int) -> dict[str, str]:
    return {"relayhost": f"[127.0.0.1]:{port}"}


def _delivering_to(maildir: Path) -> dict[str, str]:
    """virtual(8) takes any address and writes it to the one Maildir; its user is made the owner."""
    (maildir / "new").mkdir(parents=True, exist_ok=True)
    for name in ("cur", "tmp"):
        (maildir / name).mkdir(exist_ok=True)
    for folder in (maildir, *maildir.iterdir()):
        shutil.chown(folder, "nobody", "nogroup")
    return {
        "default_transport": "virtual",
        "virtual_mailbox_base": str(maildir.parent),
        "virtual_mailbox_maps": f"static:{maildir.name}/",
        "virtual_uid_maps": f"static:{maildir.stat().st_uid}",
        "virtual_gid_maps": f"static:{maildir.stat().st_gid}",
        "virtual_minimum_uid": "1",
        "maillog_file": str(maildir.parent / "maillog"),
        "maillog_file_prefixes": str(maildir.parent),
    }


def why_not() -> str:
    """What keeps a Postfix from running here, in words for a skip; "" where nothing does."""
    if os.geteuid() != 0:
        return "a private Postfix needs root"
    return "" if shutil.which("postfix") else "Postfix is not installed"
