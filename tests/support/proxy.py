"""A proxy between Waymark and a tracking server, which fails as it is told."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

BOUND = 120  # seconds that the server may take for an answer


class Proxy(ThreadingHTTPServer):
    """Pass requests on to a server; `mode` says how this fails.

    pass; refuse: nobody listens; drop: the connection is closed at once; hang: no answer ever
    comes; error: 500; slow: each request waits; deaf: the request arrives, its answer is lost.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, uri: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.port = urlsplit(uri).port, self.server_port
        self.uri = f"http://127.0.0.1:{self.port}"
        self.mode, self._grace = "pass", 0
        self._lock = threading.Lock()
        self._held: list[socket.socket] = []  # all connections there were

    def __enter__(self) -> "Proxy":
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.set("refuse")

    def set(self, mode: str, grace: int = 0) -> None:
        """Fail in another way from now on, or after so many more requests."""
        if mode == "refuse" != self.mode:
            self.shutdown()
            self.server_close()
        elif self.mode == "refuse" != mode:
            self.socket = socket.create_server(("127.0.0.1", self.port))
            self._listen()
        with self._lock:
            self.mode, self._grace = mode, grace
        while self._held and not grace:
            with suppress(OSError):
                self._held.pop().shutdown(socket.SHUT_RDWR)

    def mode_of_request(self) -> str:
        """Return how the next request fails."""
        with self._lock:
            self._grace -= 1
            return self.mode if self._grace < 0 else "pass"

    def _listen(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._held.append(request)
        super().process_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _pass(self) -> None:
        mode = self.server.mode_of_request()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if mode == "hang":
            self.connection.recv(1)  # until the client has had enough
        if mode in ("hang", "drop"):
            return
        if mode == "error":
            self.send_error(500)
            return
        if mode == "slow":
            time.sleep(0.1)
        server = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=BOUND)
        with contextlib.closing(server):
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            content = answer.read()
        if mode == "deaf":
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET: Callable[..., None] = _pass
    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""
