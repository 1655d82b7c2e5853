"""One GET over HTTPS, off the loop: verified, without redirects, bounded in size and time.

Rules: the connection is opened on the loop; TLS and HTTP run in one of a few threads, by the standard
library. When the caller's patience is over, the connection is cut, so that its thread ends too. It must not
know what is fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

CONNECT_SECONDS = 15.0  # one address
WORKERS_MAX = 4  # a server that trickles keeps one of them busy, not everybody waiting


class FetchFailed(Exception):
    """In words for the log."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    content_type: str  # "text/plain", in lower case, without parameters
    body: bytes


class Fetcher:
    def __init__(self) -> None:
        self._workers: ThreadPoolExecutor | None = None

    async def get(
        self,
        host: str,
        path: str,
        *,
        addresses: Iterable[str],
        port: int,
        context: ssl.SSLContext,
        size_max_bytes: int,
        timeout_seconds: float,
    ) -> Response:
        """``https://host/path`` from one of the addresses, whatever its status. Raises FetchFailed."""
        try:
            async with asyncio.timeout(timeout_seconds):
                sock = await _connect(addresses, port)
                return await self._in_thread(sock, context, host, path, size_max_bytes, timeout_seconds)
        except TimeoutError:
            raise FetchFailed(f"{host} takes longer than {timeout_seconds:g} s") from None

    def close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._workers = None

    async def _in_thread(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        host: str,
        path: str,
        size_max_bytes: int,
        timeout_seconds: float,
    ) -> Response:
        if self._workers is None:
            self._workers = ThreadPoolExecutor(WORKERS_MAX, "https")
        sock.settimeout(timeout_seconds)
        # A second handle on the connection, to cut it by: TLS takes the socket itself over.
        with contextlib.closing(sock.dup()) as handle:
            work = self._workers.submit(_exchange, sock, context, host, path, size_max_bytes)
            try:
                return await asyncio.wrap_future(work)
            finally:
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)
                if work.cancelled():  # before a thread was free for it
                    sock.close()


async def _connect(addresses: Iterable[str], port: int) -> socket.socket:
    """The first address that answers. Raises FetchFailed, TimeoutError."""
    trouble = "it has no address"
    for address in addresses:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
            return sock
        except OSError as problem:  # a TimeoutError is one
            sock.close()
            words = os.strerror(problem.errno) if problem.errno else "no answer in time"
            trouble = f"cannot connect to {address} port {port}: {words}"
        except BaseException:
            sock.close()
            raise
    raise FetchFailed(trouble)


def _exchange(
    sock: socket.socket, context: ssl.SSLContext, host: str, path: str, size_max_bytes: int
) -> Response:
    """Runs in a thread; closes the socket. Raises FetchFailed."""
    import http.client

    try:
        with sock, contextlib.closing(http.client.HTTPConnection(host)) as connection:
            connection.sock = context.wrap_socket(sock, server_hostname=host, suppress_ragged_eofs=False)
            connection.request("GET", path, headers={"Accept": "*/*", "Connection": "close"})
            with connection.getresponse() as response:
                body = response.read(size_max_bytes + 1)
    except ssl.SSLCertVerificationError as problem:
        raise FetchFailed(f"the certificate of {host} is not good: {problem.verify_message}") from None
    except ssl.SSLEOFError:  # nobody but the server itself may say where its answer ends
        raise FetchFailed(f"{host} breaks off") from None
    except (OSError, ValueError, http.client.HTTPException) as problem:
        raise FetchFailed(f"{host}: {str(problem) or type(problem).__name__}") from None
    if len(body) > size_max_bytes:
        raise FetchFailed(f"{host} sends more than {size_max_bytes} bytes")
    if response.length:  # what is still to come, or None
        raise FetchFailed(f"{host} breaks off")
    return Response(response.status, response.headers.get_content_type(), body)
