"""The control socket: what the command line (and later the web page) says to the running relay.

A Unix socket, ``control.sock`` in the runtime folder, mode 0660, of the group ``pi-relay`` where there is
one: whoever may open it may rule the relay. One question a connection, each side in lines of JSON:

    question  {"verb": "queue_list", "device": "copier-2f"}
    answer    {"result": ...}                                           one line
    stream    {"item": ...}  {"item": ...}  ...  {"end": true}          one line each, for what may be long
    refusal   {"error": {"code": ..., "message": ..., "hint": ..., "details": ...}}      also amid a stream

Codes of refusals: "usage", "bad_configuration", "not_found", "failed".

| verb | arguments | answer |
|---|---|---|
| version | | {version, pid} |
| status | | the document of `status --json` |
| reload | | {warnings: [finding]}; refused with bad_configuration, details [finding] |
| queue_list | state, device, recipient: "" = any | stream of message documents |
| queue_show | queue_id | a message document |
| queue_message | queue_id | stream of {data: base64}, the bytes in wire form |
| queue_retry, queue_hold | ids, or all: true | {done: [id], unknown: [id]} |
| queue_release | ids, or device | the same |
| queue_delete | ids; bounce: tell the senders | the same |
| send_test | address; via: "" = by the routes | {queue_id, from, size_bytes}; not_found: no such smart host |
| devices | | stream of the objects of `devices --json` |
| tls | | {path, is_admins, chain: PEM, problem, clock_wrong}: the certificate that devices see |
| tls_renew | | the same, of a new one |
| fate | queue_id; seen_attempts: -1 = none; wait_seconds | a fate, see below |

finding: ``finding_document``. Message document: ``message_document``.
Fate, given as soon as the message is settled or has more attempts than ``seen_attempts``, else after
``wait_seconds``: {state: "queued"|"attempting"|"deferred"|"held"|"relayed"|"failed", attempts, next_hop,
reply: {code, enhanced_status, text, remote_mta}|null, next_attempt_at}; not_found after it is forgotten.

Rules: asyncio is imported by the server's side alone, for `pi-relay status` must be quick. Lines, waiting and
connections are bounded; a client can never stop the relay. It must not know what the verbs do.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pi_relay import maillog
from pi_relay.maillog import rfc3339

if TYPE_CHECKING:
    import asyncio

    from pi_relay.config import Finding
    from pi_relay.model import Envelope, Reply

SOCKET_NAME = "control.sock"
GROUP = "pi-relay"
QUESTION_SIZE_MAX_BYTES = 1024 * 1024
ANSWER_LINE_SIZE_MAX_BYTES = 16 * 1024 * 1024
CONNECTIONS_MAX = 16
QUESTION_TIMEOUT_SECONDS = 10  # from the connection to its question
READER_TIMEOUT_SECONDS = 60  # for a client that does not read its answer
ANSWER_TIMEOUT_SECONDS = 30  # how long a client waits for an answer that has nothing to wait for

# A handler gets the question, verb included; it answers with a value, or yields the items of a stream.
Handler = Callable[[dict[str, Any]], Awaitable[object] | AsyncIterator[object]]


class ControlError(Exception):
    """A question refused: ``code`` as above, words for a person, and where it helps a hint and details."""

    def __init__(self, code: str, message: str, *, hint: str = "", details: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details


class NotRunning(Exception):
    """Nobody answers at the socket."""


# ── documents ────────────────────────────────────────────────────────────────────────────────────


def message_document(envelope: Envelope, state: str) -> dict[str, Any]:
    """A message as `queue list --json` shows it. ``state``: queued, deferred, held or attempting."""
    return {
        "queue_id": envelope.queue_id,
        "state": state,
        "reverse_path": envelope.reverse_path,
        "recipients": [
            {
                "forward_path": recipient.forward_path,
                "status": recipient.status.value,
                "last_reply": reply_document(recipient.last_reply),
            }
            for recipient in envelope.recipients
        ],
        "size_bytes": envelope.message_size_bytes,
        "accepted_at": timestamp(envelope.accepted_at),
        "attempts": envelope.attempts,
        "next_attempt_at": timestamp(envelope.next_attempt_at),
        "device": envelope.device,
        "client": envelope.client,
    }


def stored_state(envelope: Envelope) -> str:
    """The state of a message that nobody attempts at the moment; where two fit, the first counts."""
    if envelope.held:
        return "held"
    return "deferred" if envelope.attempts or envelope.slots_used else "queued"


def is_wanted(document: Mapping[str, Any], *, state: str = "", device: str = "", recipient: str = "") -> bool:
    """Whether a message document is among those asked for; "" = any.

    ``device``: its name, or the client's address. ``recipient``: a pattern, where * stands for anything.
    """
    if state and document["state"] != state:
        return False
    if device and device not in (document["device"], document["client"]):
        return False
    if not recipient:
        return True
    from pi_relay.patterns import matches

    return any(matches((recipient,), one["forward_path"]) for one in document["recipients"])


def finding_document(finding: Finding) -> dict[str, Any]:
    """A finding of the configuration file as the flat object of `check --json`."""
    return {
        "line": finding.line,
        "key": finding.key,
        "severity": str(finding.severity),
        "message": finding.message,
        "hint": finding.hint,
    }


def reply_document(reply: Reply | None) -> dict[str, Any] | None:
    if reply is None:
        return None
    return {
        "code": reply.code,
        "enhanced_status": reply.enhanced_status,
        "text": reply.text,
        "remote_mta": reply.remote_mta,
    }


def timestamp(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, whole seconds."""
    return None if seconds is None else rfc3339(seconds)


# ── the asking side: plain blocking sockets ──────────────────────────────────────────────────────


def ask(
    path: Path,
    verb: str,
    arguments: Mapping[str, object] = MappingProxyType({}),
    *,
    timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
) -> Any:
    """The result of one question. Raises NotRunning, ControlError, or OSError (no right to the socket)."""
    for line in _answers(path, verb, timeout_seconds, arguments):
        if "result" in line:
            return line["result"]
    raise ControlError("failed", "the relay broke off its answer")


def ask_each(
    path: Path,
    verb: str,
    arguments: Mapping[str, object] = MappingProxyType({}),
    *,
    timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
) -> Iterator[Any]:
    """The items of a streamed answer. Raises as ``ask`` does, also amid the stream."""
    for line in _answers(path, verb, timeout_seconds, arguments):
        if "end" in line:
            return
        yield line["item"]
    raise ControlError("failed", "the relay broke off its answer")


def _answers(
    path: Path, verb: str, timeout_seconds: float, arguments: Mapping[str, object]
) -> Iterator[dict[str, Any]]:
    question = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as problem:
            raise NotRunning(str(path)) from problem
        connection.sendall(question)
        with connection.makefile("rb") as answers:
            while line := answers.readline(ANSWER_LINE_SIZE_MAX_BYTES):
                yield _checked(line)


def _checked(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError as problem:
        raise ControlError("failed", "the relay's answer cannot be read") from problem
    if "error" in answer:
        refusal = answer["error"]
        raise ControlError(
            refusal["code"], refusal["message"], hint=refusal.get("hint", ""), details=refusal.get("details")
        )
    return dict(answer)


# ── the answering side ───────────────────────────────────────────────────────────────────────────


class ControlServer:
    """Answers at ``path`` with the ``handlers``, by verb. A handler's exception answers, and is logged."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Bind the socket. OSError where that fails, also where another relay answers there."""
        import asyncio

        self._server = await asyncio.start_unix_server(
            self._converse, sock=_bound_socket(self._path), limit=QUESTION_SIZE_MAX_BYTES
        )

    async def close(self) -> None:
        """Stop answering; conversations under way are broken off."""
        import asyncio

        if self._server is None:
            return
        self._server.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        self._path.unlink(missing_ok=True)
        self._server = None

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        if len(self._conversations) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._conversations.add(task)
        try:
            await self._answer(reader, writer)
            writer.close()
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # the client is gone or asleep, or we are stopping
        finally:
            self._conversations.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = await _question(reader)
            await self._handle(question, writer)
        except ControlError as refusal:
            await _write_error(writer, refusal)
        except OSError:
            raise
        except Exception as problem:
            maillog.error("a question on the control socket failed", problem)
            await _write_error(writer, ControlError("failed", f"{type(problem).__name__}: {problem}"))

    async def _handle(self, question: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        handler = self._handlers.get(question["verb"])
        if handler is None:
            raise ControlError("usage", f"the relay knows no {question['verb']!r}")
        answer = handler(question)
        if isinstance(answer, AsyncIterator):
            async for item in answer:
                await _write_line(writer, {"item": item})
            await _write_line(writer, {"end": True})
        else:
            await _write_line(writer, {"result": await answer})


async def _question(reader: asyncio.StreamReader) -> dict[str, Any]:
    import asyncio

    try:
        async with asyncio.timeout(QUESTION_TIMEOUT_SECONDS):
            line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as problem:
        raise ConnectionResetError from problem
    except asyncio.LimitOverrunError as problem:
        raise ControlError("usage", "the question is too long") from problem
    try:
        question = json.loads(line)
    except ValueError as problem:
        raise ControlError("usage", "the question is no JSON") from problem
    if not isinstance(question, dict) or not isinstance(question.get("verb"), str):
        raise ControlError("usage", "the question names no verb")
    return question


async def _write_error(writer: asyncio.StreamWriter, refusal: ControlError) -> None:
    error = {
        "code": refusal.code,
        "message": refusal.message,
        "hint": refusal.hint,
        "details": refusal.details,
    }
    await _write_line(writer, {"error": error})


async def _write_line(writer: asyncio.StreamWriter, line: object) -> None:
    import asyncio

    writer.write(json.dumps(line).encode() + b"\n")
    async with asyncio.timeout(READER_TIMEOUT_SECONDS):
        await writer.drain()


def _bound_socket(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody may connect between bind and chmod.
    umask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    _give_to_group(path)
    path.chmod(0o660)
    return listener


def _remove_stale(path: Path) -> None:
    """Take away what a crash left; a socket that answers belongs to another relay."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is in the way: it is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(f"another pi-relay answers at {path}")


def _give_to_group(path: Path) -> None:
    import grp
    from contextlib import suppress

    with suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
