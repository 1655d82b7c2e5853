"""An HTTPS server in threads of this process: a page for each host, or whatever else it shall do.

with HttpsServer(leaf.server_context()) as server:
    server.pages["mta-sts.office.example"] = Page(b"version: STSv1\\n...")
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Page:
    body: bytes
    status: int = 200
    content_type: str = "text/plain"
    headers: Mapping[str, str | None] = field(default_factory=dict)  # None: without it
    says_goodbye: bool = True  # ends TLS before it closes the connection
    delay_seconds: float = 0.0  # before the answer
    trickle_seconds: float = 0.0  # between its bytes


class HttpsServer:
    def __init__(self, context: ssl.SSLContext, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str]] = []  # host and path
        self.open = 0  # connections
        self._server = _server(self, (address, port), context)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> HttpsServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _server(owner: HttpsServer, address: tuple[str, int], context: ssl.SSLContext) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host = self.headers.get("Host", "")
            owner.asked.append((host, self.path))
            page = owner.pages.get(host, Page(b"nothing here\n", status=404))
            time.sleep(page.delay_seconds)
            self.send_response(page.status)
            headers: dict[str, str | None] = {
                "Content-Type": page.content_type,
                "Content-Length": str(len(page.body)),
            }
            for name, value in {**headers, **page.headers}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            if not page.trickle_seconds:
                self.wfile.write(page.body)
            else:
                for byte in page.body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(page.trickle_seconds)
            if page.says_goodbye:
                self.connection.unwrap()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request: Any, client_address: Any) -> None:
            owner.open += 1
            try:
                request.settimeout(20)
                with context.wrap_socket(request, server_side=True) as secured:
                    super().finish_request(secured, client_address)
            except OSError:  # the client did not like us, or is gone
                pass
            finally:
                owner.open -= 1

    return Server(address, Handler)
