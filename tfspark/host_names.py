"""Hosts as they are written in URLs and in ``host:port``: IPv6 addresses in brackets."""

from __future__ import annotations


def in_url(host: str) -> str:
    """Return a host as it is written in a URL: an IPv6 address in brackets, also if it has them already.

    Examples
    --------
    >>> in_url("::1"), in_url("[::1]"), in_url("example.com")
    ('[::1]', '[::1]', 'example.com')
    """
    return f"[{bare(host)}]" if ":" in host else host


def bare(host: str) -> str:
    """Return a host without the brackets of an IPv6 address.

    Examples
    --------
    >>> bare("[::1]"), bare("127.0.0.1")
    ('::1', '127.0.0.1')
    """
    return host.strip("[]")
