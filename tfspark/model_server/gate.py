"""Which requests are let in: those for the server's own names, and not from web pages of others.

A browser sends what any page asks it to, to any host name that the page's owner has pointed here, and says so in these
headers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from tfspark.model_server.faults import Forbidden, RequestError


def check(
    scheme: str, host: str, origin: str | None, hosts: Collection[str] | None, origins: Collection[str] = ()
) -> None:
    """Check the headers of a request.

    Parameters
    ----------
    scheme
        By which the request came.
    host, origin
        The headers of these names.
    hosts
        Names and addresses that requests may be addressed to; ``None`` for any.
    origins
        Further origins whose web pages may ask; ``*`` for all.

    Raises
    ------
    RequestError
        If it is addressed to somebody else.
    Forbidden
        If a web page of another origin asks.
    """
    if hosts is not None and _name(host) not in {_plain(h) for h in hosts}:
        raise RequestError(f"This server is not {host!r}.")
    if origin is None or "*" in origins:
        return
    if origin.lower() not in {f"{scheme}://{host}".lower(), *(o.lower() for o in origins)}:
        raise Forbidden(f"Web pages of {origin!r} may not ask this server.")


def _name(host: str) -> str | None:
    """Return the ``Host`` header without its port."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return _plain(name) if name else None


def _plain(host: str) -> str:
    """Return one spelling for all of a name or an address."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()
