"""A next hop that does what its script says: refuse, stall, break off, talk nonsense, at any point.

It is a good SMTP server where the script says nothing. It runs in threads of its own, so that any test can
use it, and keeps all that was said to it.

    with MisbehavingHop({"RCPT": ["250 ok", "452 4.5.3 enough"], "DOT": DROP}) as hop: ...

Keys are CONNECT (the greeting), TLS (just before a handshake), a verb, DOT (the end of data), or CONTENT
(in the midst of it, after ``content_bytes``). A value is an action, a list of them (one each time, the last
for ever), or a function of the command's argument. An action is the text of a reply, lines parted by \\n,
an Act, or None: what a good server would do.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import secrets
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

EXTENSIONS = ("PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")


@dataclass(frozen=True)
class Act:
    """Send the bytes as they are, then: "go on" · "close" · "reset" (RST) · "hang" (say nothing again) ·
    "half-close" (send nothing more, but read).

    ``after_seconds``: first wait so long. ``takes``: at the end of data, the message is taken all the same.
    """

    say: bytes = b""
    then: str = "go on"
    after_seconds: float = 0.0
    takes: bool = False


DROP = Act(then="close")
RESET = Act(then="reset")
HANG = Act(then="hang")

Action = str | Act
Script = Mapping[str, "Action | Sequence[Action | None] | Callable[[str], Action]"]


@dataclass
class Seen:
    """One connection, as the hop saw it."""

    commands: list[str] = field(default_factory=list)
    tls: bool = False
    login: str = ""
    ended: str = ""  # "quit" | "lost" | what the script did


@dataclass
class Message:
    mail: str
    rcpts: list[str]
    content: bytes  # as it came over the wire, without the final ".CRLF"


class _Over(Exception):
    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class MisbehavingHop:
    def __init__(
        self,
        script: Script | None = None,
        *,
        extensions: Sequence[str] = EXTENSIONS,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        accounts: Mapping[str, str] | None = None,
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN", "CRAM-MD5"),
        content_bytes: int = 0,
        name: str = "hop.example",
    ) -> None:
        self.script = dict(script or {})
        self.extensions = extensions
        self.connections: list[Seen] = []
        self.messages: list[Message] = []
        self.open_now = 0
        self.open_at_most = 0
        self._used: dict[str, int] = {}
        self._lock = threading.Lock()
        self._tls = tls
        self._implicit_tls = implicit_tls
        self._accounts = accounts
        self._mechanisms = mechanisms
        self._content_bytes = content_bytes
        self._name = name
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._stopping = threading.Event()

    def __enter__(self) -> MisbehavingHop:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    @property
    def commands(self) -> list[str]:
        """All commands of all connections, in order of the connections."""
        return [command for seen in self.connections for command in seen.commands]

    def verbs(self) -> list[str]:
        return [command.partition(" ")[0] for command in self.commands]

    def disconnect_all(self, say: bytes = b"") -> None:
        """End every open connection from this side."""
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.sendall(say)
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.append(sock)
                self.open_now += 1
                self.open_at_most = max(self.open_at_most, self.open_now)
            seen = Seen()
            self.connections.append(seen)
            threading.Thread(target=self._serve, args=(sock, seen), daemon=True).start()

    def _serve(self, sock: socket.socket, seen: Seen) -> None:
        conversation = _Conversation(self, sock, seen)
        try:
            conversation.run()
        except _Over as over:
            seen.ended = over.how
        except (OSError, ValueError):
            seen.ended = "lost"
        finally:
            conversation.close()
            with self._lock:
                self.open_now -= 1

    def action(self, key: str, argument: str) -> Action | None:
        scripted = self.script.get(key)
        if scripted is None or isinstance(scripted, (str, Act)):
            return scripted
        if callable(scripted):
            return scripted(argument)
        with self._lock:
            turn = self._used.get(key, 0)
            self._used[key] = turn + 1
        return scripted[min(turn, len(scripted) - 1)]


class _Conversation:
    def __init__(self, hop: MisbehavingHop, sock: socket.socket, seen: Seen) -> None:
        self._hop = hop
        self._sock = sock
        self._seen = seen
        self._buffer = b""
        self._mail = ""
        self._rcpts: list[str] = []

    def run(self) -> None:
        if self._hop._implicit_tls:
            self._start_tls()
        self._answer("CONNECT", "", f"220 {self._hop._name} ESMTP")
        while True:
            line = self._read_line()
            self._seen.commands.append(line)
            verb, _, argument = line.partition(" ")
            handler = getattr(self, f"_do_{verb.lower()}", None)
            if handler is None:
                self._answer(verb.upper(), argument, "502 5.5.1 what?")
            else:
                handler(argument)

    def close(self) -> None:
        if self._seen.ended == "reset":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            if self._seen.ended != "reset":
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()

    # ── verbs ────────────────────────────────────────────────────────────────────────────────────

    def _do_ehlo(self, argument: str) -> None:
        offers = list(self._hop.extensions)
        if self._hop._tls and not self._seen.tls:
            offers.append("STARTTLS")
        if self._hop._accounts is not None:
            offers.append("AUTH " + " ".join(self._hop._mechanisms))
        self._answer("EHLO", argument, "250 " + "\n".join((f"{self._hop._name} at your service", *offers)))

    def _do_helo(self, argument: str) -> None:
        self._answer("HELO", argument, f"250 {self._hop._name}")

    def _do_starttls(self, argument: str) -> None:
        if self._answer("STARTTLS", argument, "220 2.0.0 go ahead"):
            self._start_tls()

    def _start_tls(self) -> None:
        self._answer("TLS", "", "")
        assert self._hop._tls is not None
        self._sock = self._hop._tls.wrap_socket(self._sock, server_side=True)
        self._seen.tls = True
        self._buffer = b""

    def _do_auth(self, argument: str) -> None:
        if self._hop.action("AUTH", argument) is not None:
            self._answer("AUTH", argument, "")
            return
        mechanism, _, initial = argument.partition(" ")
        user, right = getattr(self, f"_auth_{mechanism.lower().replace('-', '_')}")(initial)
        self._seen.login = user if right else ""
        self._send("235 2.7.0 welcome" if right else "535 5.7.8 wrong")

    def _auth_plain(self, initial: str) -> tuple[str, bool]:
        _, user, password = base64.b64decode(initial).decode().split("\0")
        return user, (self._hop._accounts or {}).get(user) == password

    def _auth_login(self, initial: str) -> tuple[str, bool]:
        user = base64.b64decode(initial or self._ask("VXNlcm5hbWU6")).decode()
        password = base64.b64decode(self._ask("UGFzc3dvcmQ6")).decode()
        return user, (self._hop._accounts or {}).get(user) == password

    def _auth_cram_md5(self, _: str) -> tuple[str, bool]:
        challenge = f"<{secrets.token_hex(8)}@hop.example>".encode()
        answer = base64.b64decode(self._ask(base64.b64encode(challenge).decode())).decode()
        user, _, digest = answer.partition(" ")
        password = (self._hop._accounts or {}).get(user, "")
        return user, hmac.new(password.encode(), challenge, "md5").hexdigest() == digest

    def _ask(self, prompt: str) -> str:
        self._send(f"334 {prompt}")
        return self._read_line()

    def _do_mail(self, argument: str) -> None:
        if self._answer("MAIL", argument, "250 2.1.0 ok"):
            self._mail, self._rcpts = argument, []

    def _do_rcpt(self, argument: str) -> None:
        if not self._mail:
            self._send("503 5.5.1 MAIL first")
        elif self._answer("RCPT", argument, "250 2.1.5 ok"):
            self._rcpts.append(argument)

    def _do_data(self, argument: str) -> None:
        scripted = self._hop.action("DATA", argument)
        if scripted is None and not self._rcpts:
            self._send("503 5.5.1 RCPT first" if not self._mail else "554 5.5.1 no valid recipients")
            return
        self._perform(scripted if scripted is not None else "354 go ahead")
        if isinstance(scripted, str) and not scripted.startswith("354"):
            return
        content = self._read_content()
        message = Message(self._mail, self._rcpts, content)
        self._mail, self._rcpts = "", []
        action = self._hop.action("DOT", "") or "250 2.0.0 taken as 12345"
        takes = action.takes if isinstance(action, Act) else action.startswith("2")
        if takes:
            self._hop.messages.append(message)
        self._perform(action)

    def _do_rset(self, argument: str) -> None:
        self._mail, self._rcpts = "", []
        self._answer("RSET", argument, "250 2.0.0 ok")

    def _do_quit(self, argument: str) -> None:
        self._answer("QUIT", argument, "221 2.0.0 bye")
        raise _Over("quit")

    # ── saying and hearing ───────────────────────────────────────────────────────────────────────

    def _answer(self, key: str, argument: str, otherwise: str) -> bool:
        """Do what the script says, else answer so; whether the reply was a positive one."""
        action = self._hop.action(key, argument)
        action = otherwise if action is None else action
        self._perform(action)
        return isinstance(action, Act) or action[:1] in ("2", "3")

    def _perform(self, action: Action) -> None:
        if isinstance(action, str):
            if action:
                self._send(action)
            return
        if action.after_seconds:
            self._hop._stopping.wait(action.after_seconds)
        if action.say:
            self._sock.sendall(action.say)
        if action.then == "half-close":
            self._sock.shutdown(socket.SHUT_WR)
            return
        if action.then == "hang":
            self._hop._stopping.wait(60)
        if action.then != "go on":
            raise _Over(action.then)

    def _send(self, text: str) -> None:
        code, *_ = text.split(" ", 1)
        first, *more = text.split("\n")
        lines = [first, *(f"{code} {line}" for line in more)]
        told = [line[:3] + "-" + line[4:] for line in lines[:-1]] + lines[-1:]
        self._sock.sendall("".join(f"{line}\r\n" for line in told).encode())

    def _read_line(self) -> str:
        while b"\r\n" not in self._buffer:
            self._read_more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line.decode()

    def _read_content(self) -> bytes:
        """Up to the lone dot, wherever the packets were cut."""
        if self._buffer.startswith(b".\r\n"):
            self._buffer = self._buffer[3:]
            return b""
        while (end := self._buffer.find(b"\r\n.\r\n")) < 0:
            if self._buffer == b".\r\n":
                self._buffer = b""
                return b""
            scripted = (
                self._hop.action("CONTENT", "") if len(self._buffer) >= self._hop._content_bytes else None
            )
            if scripted is not None:
                self._perform(scripted)
            self._read_more()
        content, self._buffer = self._buffer[: end + 2], self._buffer[end + 5 :]
        return content

    def _read_more(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise _Over("lost")
        self._buffer += data
