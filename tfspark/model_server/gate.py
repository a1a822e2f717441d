"""Access checks: a request must use one of the server's names and must not come from another site's web page.

A browser sends the requests of any web page, also to a host name that the owner of the page has pointed to this
server. The headers ``Host`` and ``Origin`` identify such requests.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from tfspark.model_server.errors import Forbidden, RequestError


def check(
    scheme: str, host: str, origin: str | None, hosts: Collection[str] | None, origins: Collection[str] = ()
) -> None:
    """Check the headers of a request.

    Parameters
    ----------
    scheme
        Scheme of the request.
    host, origin
        Values of the headers ``Host`` and ``Origin``.
    hosts
        Names and addresses of the server to accept; ``None`` for any.
    origins
        Origins of web pages to accept in addition to the server's own; ``*`` for all.

    Raises
    ------
    RequestError
        If the ``Host`` header is not accepted.
    Forbidden
        If the ``Origin`` header is not accepted.
    """
    if hosts is not None and _name(host) not in {_plain(h) for h in hosts}:
        raise RequestError(f"The Host header is {host!r}, which is not a name of this server.")
    if origin is None or "*" in origins:
        return
    if origin.lower() not in {f"{scheme}://{host}".lower(), *(o.lower() for o in origins)}:
        raise Forbidden(f"Web pages from {origin!r} are not allowed to use this server.")


def _name(host: str) -> str | None:
    """Return the ``Host`` header without its port."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return _plain(name) if name else None


def _plain(host: str) -> str:
    """Return the normal form of a name or an address."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()
