"""A small read-only web server in the driver: a live page of the cluster, and its metrics for Prometheus.

Every request needs the cluster's view token, in the path or as a bearer token; requests without it get status 404. The
token allows reading only.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tfspark.host_names import in_url
from tfspark.json_numbers import nonfinite_to_none
from tfspark.monitoring.page import RunView, live_page, run_html

logger = logging.getLogger("tfspark")

REQUEST_SECONDS = 10.0
"""A connection is closed if its client sends nothing for this long within a request."""

MOST_CONNECTIONS = 32
"""Largest number of connections at the same time; further connections are closed."""


class WebServer:
    """A server that runs from construction until `close`.

    Parameters
    ----------
    bind
        Address to bind; the kernel chooses the port.
    host
        Host name or address for browsers.
    token
        The view token.
    view
        Function that returns the state of the cluster.
    name
        Name of the cluster for Prometheus.
    """

    def __init__(self, bind: str, host: str, token: str, view: Callable[[], RunView], name: str) -> None:
        self._server = _Server(bind, token, view, name)
        port = self._server.server_address[1]
        self.url = f"http://{in_url(host)}:{port}/{token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="tfspark-web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, bind: str, token: str, view: Callable[[], RunView], name: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self.token, self.view, self.name = token.encode(), view, name
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((bind, 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request for the cluster's page failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS
    server_version, sys_version = "tfspark", ""

    def do_GET(self) -> None:
        """Answer with the page, its content, or the metrics."""
        what = self._asked()
        try:
            if what == "":
                nonce = secrets.token_urlsafe(12)
                page = live_page(self.server.view().title, nonce)
                self._answer(page.encode(), "text/html; charset=utf-8", nonce)
            elif what == "view":
                self._answer(run_html(self.server.view()).encode(), "text/html; charset=utf-8")
            elif what == "metrics":
                from tfspark.monitoring.prometheus import CONTENT_TYPE, exposition

                self._answer(exposition(self.server.view().snapshot, self.server.name), CONTENT_TYPE)
            elif what == "status.json":
                self._answer(
                    json.dumps(nonfinite_to_none(asdict(self.server.view().snapshot))).encode(), "application/json"
                )
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("the client of the cluster's page has disconnected")

    do_HEAD = do_GET

    def _asked(self) -> str | None:
        """Return the path below the token, or ``None`` if the token is wrong."""
        path = self.path.split("?", 1)[0].split("#", 1)[0]
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return path.lstrip("/").removeprefix(f"{self.server.token.decode()}/")
        first, slash, rest = path.lstrip("/").partition("/")
        return rest if slash and self._is_token(first) else None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.server.token)

    def _answer(self, body: bytes, kind: str, nonce: str = "") -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        script = f"script-src 'nonce-{nonce}'; " if nonce else ""
        policy = f"default-src 'none'; {script}style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because the lines would contain the token."""
