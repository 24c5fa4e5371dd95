"""Who may do what: a token for all that changes something or uses the device, and no web page of anybody's."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from typing import Literal

from pimcal.serving.binding import Binding

Refusal = Literal[401, 403]

OPEN_TO_ALL = ("/healthz",)
INFER = "/infer"
LOOKING = ("GET", "HEAD", "OPTIONS")


def refused(binding: Binding, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
    """The status code that a request is refused with; None where it may pass. `headers`: names in lower case."""
    if "origin" in headers or (binding.local and not _names_this_machine(headers.get("host", ""))):
        return 403  # a browser, sent here by some page
    if _needs_token(binding, method, path) and not _has_token(binding, headers.get("authorization", "")):
        return 401
    return None


def _needs_token(binding: Binding, method: str, path: str) -> bool:
    if path in OPEN_TO_ALL:
        return False
    if not binding.local:
        return True
    if path == INFER:
        return binding.token is not None
    return method not in LOOKING


def _has_token(binding: Binding, authorization: str) -> bool:
    kind, _, given = authorization.partition(" ")
    if binding.token is None or kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), binding.token.encode())


def _names_this_machine(host: str) -> bool:
    """Whether a Host header is what somebody on this machine would write, not a name that leads here by a trick."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
