"""Which requests `tfspark serve` lets in."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tfspark.model_server.errors import RequestError
from tfspark.model_server.gate import check

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("host", "given", "allowed"),
    [
        ("localhost:8501", "127.0.0.1", True),
        ("LOCALHOST", "127.0.0.1", True),
        ("127.0.0.1:1", "::1", True),
        ("127.0.0.2:8501", "127.0.0.2", True),
        ("[::1]:8501", "::1", True),
        ("[::1]", "0:0:0:0:0:0:0:1", True),
        ("[::1]:8501", "127.0.0.1", False),
        ("127.0.0.2", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("localhost@evil.example", "127.0.0.1", False),
        ("[::1", "::1", False),
        ("", "::1", False),
    ],
)
def test_hosts_that_requests_may_be_addressed_to(host: str, given: str, allowed: bool) -> None:
    with nullcontext() if allowed else pytest.raises(RequestError):
        check("http", host, None, ["localhost", "127.0.0.1", given])
    check("http", host, None, None)
