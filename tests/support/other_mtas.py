"""Exim and OpenSMTPD as next hops, as Debian ships them, unpacked (scripts/setup) beside Postfix.

    with exim(address="127.0.1.2", tls=leaf) as server:
        ...
        server.inbox()

Each runs in a root of its own (this machine's programs and libraries, and nothing else of it), in the network
it was started in, and nothing of it outlives it. Mail to KNOWN at any domain goes into its Maildir.
Needs root.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Leaf
from tests.support.processes import family, greeting, wait_until

KNOWN = ("ann", "bob", "scans")
GONE = "eve"  # Exim takes mail for her, and then finds that it cannot deliver it
BEYOND_ASCII = "änn"  # known to Exim; OpenSMTPD has no SMTPUTF8

_MAILDIR = ("new", "cur", "tmp")
_USERS = {"root": 0, "Debian-exim": 64501, "opensmtpd": 64502, "opensmtpq": 64503, "nobody": 65534}

# In namespaces of its own: the MTA's /usr over ours, its /etc, and /srv, which is seen from outside too.
# PID 1 there is the MTA: with it goes all that it has started.
_START = """
mount -t tmpfs -o mode=755 tmpfs "$1/root"
cd "$1/root"
mkdir -p dev etc proc run srv tmp usr var/lib/opensmtpd/empty var/spool/smtpd
ln -s usr/bin usr/sbin usr/lib usr/lib64 .
ln -s ../run var/run
chmod 711 var/spool/smtpd
mount -t overlay overlay -o "lowerdir=$2/usr:/usr" usr
mount --rbind /dev dev
mount -t proc proc proc
mount --bind "$1/srv" srv
cp -a "$1/etc" .
shift 2
exec chroot . "$@"
"""


def why_not() -> str:
    """What keeps them from running here, in words for a skip; "" where nothing does."""
    if os.geteuid() != 0:
        return "Exim and OpenSMTPD need root"
    return "" if _tree().exists() else "Exim and OpenSMTPD are not unpacked (scripts/setup --test)"


def _tree() -> Path:
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache", "pi-relay-tests", f"mtas-{codename}")


@dataclass
class Mta:
    """``command`` stays in the foreground. ``files``: their place in /etc, and their text."""

    command: tuple[str, ...]
    user: str  # whom the Maildir belongs to
    files: dict[str, str]
    address: str
    port: int
    tls: Leaf | None
    key_user: str = "root"  # who reads the key of ``tls``
    _folder: Path = field(init=False)
    _process: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Mta:
        self._folder = Path(tempfile.mkdtemp(prefix="mta-"))
        self._lay_out()
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child",
                 "sh", "-ec", _START, "start", self._folder, _tree(), *self.command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_until(self._greets, 20, f"{self.command[0]} to greet")
        except BaseException as error:
            error.add_note(self.log())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(family(self._process.pid))[1:2]:  # below unshare, the MTA: PID 1 to all the others
            os.kill(pid, signal.SIGKILL)
        self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def inbox(self) -> list[bytes]:
        """What it has delivered, its own header lines on top."""
        return [path.read_bytes() for path in self._maildir.joinpath("new").iterdir()]

    def log(self) -> str:
        """What it has said; Exim says more in a file."""
        logs = (self._folder / "log", self._folder / "srv" / "mainlog")
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    @property
    def _maildir(self) -> Path:
        return self._folder / "srv" / "Maildir"

    def _lay_out(self) -> None:
        for name in ("root", "etc", "srv"):
            (self._folder / name).mkdir()
        for folder in (self._maildir.parent, self._maildir, *(self._maildir / each for each in _MAILDIR)):
            folder.mkdir(exist_ok=True)
            os.chown(folder, _USERS[self.user], _USERS[self.user])
        passwd = "".join(f"{name}:x:{number}:{number}::/:/bin/sh\n" for name, number in _USERS.items())
        group = "".join(f"{name}:x:{number}:\n" for name, number in _USERS.items())
        for name, text in {"passwd": passwd, "group": group, **self.files}.items():
            file = self._folder / "etc" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        if self.tls is not None:
            self._put_certificate(self.tls)

    def _put_certificate(self, leaf: Leaf) -> None:
        shutil.copy(leaf.certificate, self._folder / "etc" / "certificate.pem")
        key = self._folder / "etc" / "key.pem"
        key.touch(mode=0o600)
        key.write_bytes(leaf.key.read_bytes())
        os.chown(key, _USERS[self.key_user], 0)

    def _greets(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.command[0]} ended with {self._process.returncode}")
        return greeting(self.port, host=self.address).startswith(b"220")


_EXIM = """\
primary_hostname = exim.office.example
local_interfaces = <; {address}
daemon_smtp_ports = {port}
spool_directory = /srv/spool
log_file_path = /srv/%slog
keep_environment =
{tls}
{dsn}
message_size_limit = {size_max}
recipients_max = {recipients_max}
{connections}
# It runs without the set-user-id bit that an installed one has.
deliver_drop_privilege
acl_smtp_rcpt = recipient
acl_smtp_data = accept
begin acl
recipient:
{greylisting}
{authenticated}
  require message = no such user here
          verify = recipient
  accept
begin routers
gone:
  driver = redirect
  local_parts = {gone}
  no_verify
  allow_fail
  data = :fail: the mailbox is gone
known:
  driver = accept
  local_parts = {known}
  transport = maildir
begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = /srv/Maildir
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{ {{eq{{$auth2}}{{{username}}}}} {{eq{{$auth3}}{{{password}}}}} }}}}
  server_advertise_condition = ${{if def:tls_in_cipher}}
"""


def exim(
    *,
    address: str = "127.0.0.1",
    port: int = 25,
    tls: Leaf | None = None,
    size_max_bytes: int = 10_000_000,
    recipients_max: int = 1000,
    dsn: bool = False,
    greylisting_seconds: int = 0,
    connections_max: int = 0,
    login: tuple[str, str] | None = None,
) -> Mta:
    """``dsn``: whether it has that extension, which must be asked for.

    ``greylisting_seconds``: for how long whoever is new to it gets a 451.
    ``connections_max``: from one client, 0 for no limit.
    ``login``: the name and password without which nobody may send, to be said over TLS.
    """
    greylisting = f"""\
  defer message = greylisted
        !seen = -{greylisting_seconds}s / key=${{sender_host_address}}_${{sender_address}}_$local_part@$domain
"""
    text = _EXIM.format(
        address=address,
        port=port,
        size_max=size_max_bytes,
        recipients_max=recipients_max,
        dsn="dsn_advertise_hosts = *" if dsn else "",
        tls=(
            "tls_advertise_hosts = *\ntls_certificate = /etc/certificate.pem\ntls_privatekey = /etc/key.pem"
            if tls
            else "tls_advertise_hosts ="
        ),
        greylisting=greylisting if greylisting_seconds else "",
        connections=f"smtp_accept_max_per_host = {connections_max}" if connections_max else "",
        authenticated="  require authenticated = *" if login else "",
        username=login[0] if login else "",
        password=login[1] if login else "",
        gone=GONE,
        known=" : ".join((*KNOWN, GONE, BEYOND_ASCII)),
    )
    command = ("/usr/sbin/exim4", "-bdf", "-q1h")
    user = "Debian-exim"
    return Mta(command, user, {"exim4/exim4.conf": text}, address, port, tls, key_user=user)


_OPENSMTPD = """\
{tls}
smtp max-message-size {size_max}
smtp limit max-rcpt {recipients_max}
listen on {address} port {port} {options}
table known {{ {known} }}
action "deliver" maildir "/srv/Maildir" virtual <known>
match from any for any action "deliver"
"""


def opensmtpd(
    *,
    address: str = "127.0.0.1",
    port: int = 25,
    tls: Leaf | None = None,
    size_max_bytes: int = 10_000_000,
    recipients_max: int = 1000,
    dsn: bool = True,
) -> Mta:
    """``dsn``: whether it has that extension, which can be taken away."""
    pki = 'pki "mail" cert "/etc/certificate.pem"\npki "mail" key "/etc/key.pem"'
    options = [*(['tls pki "mail"'] if tls else []), *([] if dsn else ["no-dsn"])]
    text = _OPENSMTPD.format(
        tls=pki if tls else "",
        size_max=size_max_bytes,
        recipients_max=recipients_max,
        address=address,
        port=port,
        options=" ".join(options),
        known=", ".join(f'"{name}" = "nobody"' for name in KNOWN),
    )
    files = {"smtpd.conf": text, "mailname": "opensmtpd.office.example\n"}
    if tls is not None:  # since 7 it does not start without those that it could trust
        files["ssl/certs/ca-certificates.crt"] = tls.certificate.read_text()
    return Mta(("/usr/sbin/smtpd", "-d"), "nobody", files, address, port, tls)
