"""A small read-only web server of the driver: a page that shows the cluster live, and its metrics for Prometheus.

Every address needs the cluster's view token, in the path or as a bearer token; the rest is answered as if there were
nothing. The token shows, and can do nothing.
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

from tfspark.driver.html import snapshot_html
from tfspark.driver.status import Snapshot
from tfspark.finite import finite

logger = logging.getLogger("tfspark")

REQUEST_SECONDS = 10.0
"""A client that is silent for so long in a request is cut off."""

MOST_CONNECTIONS = 32
"""Connections at a time; others are refused."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tfspark</title>
<style>body{font:14px sans-serif;margin:1.5em;color-scheme:light dark} tbody tr{border-top:1px solid #8884}</style>
</head>
<body><main id="view"></main><p id="state" style="opacity:.6"></p>
<script nonce="NONCE">
const view = document.getElementById("view"), state = document.getElementById("state");
async function update() {
  try {
    const answer = await fetch("view", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    view.innerHTML = await answer.text();
    state.textContent = "";
    setTimeout(update, 1000);
  } catch (error) {
    state.textContent = "The cluster has ended, or cannot be reached: this is what it last said.";
    setTimeout(update, 5000);
  }
}
update();
</script></body></html>
"""


class WebServer:
    """Serves from construction until `close`.

    Parameters
    ----------
    bind
        Address to bind; the port is the kernel's choice.
    host
        Address by which browsers reach this one.
    token
        The view token.
    snapshot
        Returns what is known of the cluster now.
    name
        The cluster's, for Prometheus.
    """

    def __init__(self, bind: str, host: str, token: str, snapshot: Callable[[], Snapshot], name: str) -> None:
        self._server = _Server(bind, token, snapshot, name)
        port = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/{token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="tfspark-web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, bind: str, token: str, snapshot: Callable[[], Snapshot], name: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self.token, self.snapshot, self.name = token.encode(), snapshot, name
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
        """Answer with the page, what it shows, or the metrics."""
        what = self._asked()
        try:
            if what == "":
                nonce = secrets.token_urlsafe(12)
                self._answer(PAGE.replace("NONCE", nonce).encode(), "text/html; charset=utf-8", nonce)
            elif what == "view":
                self._answer(snapshot_html(self.server.snapshot()).encode(), "text/html; charset=utf-8")
            elif what == "metrics":
                from tfspark.driver.prometheus import CONTENT_TYPE, exposition

                self._answer(exposition(self.server.snapshot(), self.server.name), CONTENT_TYPE)
            elif what == "status.json":
                self._answer(json.dumps(finite(asdict(self.server.snapshot()))).encode(), "application/json")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("whoever looked at the cluster's page has left")

    do_HEAD = do_GET

    def _asked(self) -> str | None:
        """Return what is asked for below the token, ``None`` if the token is wrong."""
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
        """Say nothing: the lines would hold the token."""
