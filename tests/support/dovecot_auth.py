"""Checks passwords for a private Postfix, as Dovecot's auth service would (its client protocol, version 1).

One user; PLAIN, LOGIN and CRAM-MD5. Postfix asks it with ``smtpd_sasl_type = dovecot``.
"""

from __future__ import annotations

import hmac
import socketserver
import tempfile
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
_CHALLENGE = b"<1.2@postfix.office.example>"


@dataclass(frozen=True, slots=True)
class PasswordServer:
    socket_path: Path
    tried: list[str] = field(default_factory=list)  # "PLAIN ok", "LOGIN fail"...

    def parameters(self) -> dict[str, str]:
        """What to put into main.cf."""
        return {
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "dovecot",
            "smtpd_sasl_path": str(self.socket_path),
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
        }


@contextmanager
def password_server(
    username: str, password: str, mechanisms: Sequence[str] = MECHANISMS
) -> Iterator[PasswordServer]:
    """Serves meanwhile."""
    with tempfile.TemporaryDirectory(prefix="auth-") as folder:
        Path(folder).chmod(0o755)  # Postfix asks as its own user
        served = PasswordServer(Path(folder) / "auth.sock")
        with _server(served, username, password, mechanisms):
            yield served


@contextmanager
def _server(
    served: PasswordServer, username: str, password: str, mechanisms: Sequence[str]
) -> Iterator[None]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("VERSION\t1\t2")
            for mechanism in mechanisms:
                self.say(f"MECH\t{mechanism}")
            self.say("SPID\t1\nCUID\t1\nCOOKIE\t00\nDONE")
            for line in self.rfile:
                command, *fields = line.decode().rstrip("\n").split("\t")
                if command == "AUTH":
                    self.authenticate(*fields)

        def authenticate(self, number: str, mechanism: str, *parameters: str) -> None:
            initial = next((each[5:] for each in parameters if each.startswith("resp=")), None)
            match mechanism:
                case "PLAIN":
                    response = b64decode(initial) if initial else self.challenge(number, b"")
                    _, name, secret = response.split(b"\0")
                    good = secret == password.encode()
                case "LOGIN":
                    name = b64decode(initial) if initial else self.challenge(number, b"Username:")
                    good = self.challenge(number, b"Password:") == password.encode()
                case _:
                    name, _, digest = self.challenge(number, _CHALLENGE).rpartition(b" ")
                    good = digest.decode() == hmac.new(password.encode(), _CHALLENGE, "md5").hexdigest()
            good = good and name == username.encode()
            served.tried.append(f"{mechanism} {'ok' if good else 'fail'}")
            self.say(f"OK\t{number}\tuser={username}" if good else f"FAIL\t{number}\treason=wrong")

        def challenge(self, number: str, text: bytes) -> bytes:
            self.say(f"CONT\t{number}\t{b64encode(text).decode()}")
            return b64decode(self.rfile.readline().rstrip(b"\n").split(b"\t")[2])

        def say(self, text: str) -> None:
            self.wfile.write(text.encode() + b"\n")

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(str(served.socket_path), Handler) as server:
        served.socket_path.chmod(0o666)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
