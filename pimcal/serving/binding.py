"""Where the HTTP interface listens, and the token that it wants."""

from __future__ import annotations

import errno
import ipaddress
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from pimcal.errors import ConfigError, DeviceBusyError, UsageError
from pimcal.files import read_regular

HOST = "127.0.0.1"
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 4096  # characters
WAITING_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Binding:
    """An address of this machine; `token` is None where nothing that needs one is on offer."""

    host: str
    port: int
    token: str | None

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def read_binding(address: str, token_file: Path | None) -> Binding:
    """`address`: [HOST:]PORT, port 0 for any that is free.

    Raises UsageError for what cannot be an address; ConfigError for one that is none, a token that cannot be used, and
    for an address that others can reach without a token.
    """
    host, port = _split(address)
    token = None if token_file is None else _read_token(token_file)
    binding = Binding(_resolved(host), port, token)
    if token is None and not binding.local:
        raise ConfigError(f"--http {address} can be reached from other machines, so --token-file FILE must be given")
    return binding


def listen(binding: Binding) -> socket.socket:
    """A listening socket. Raises DeviceBusyError where the port is taken, ConfigError where none can be made there."""
    family = socket.AF_INET6 if ":" in binding.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((binding.host, binding.port))
        listener.listen(WAITING_CONNECTIONS)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise DeviceBusyError(
                f"another program listens at {binding.url}; stop that, or give --http another port"
            ) from error
        raise ConfigError(f"cannot listen at {binding.url}: {error.strerror}; give --http another address") from error
    return listener


def _split(address: str) -> tuple[str, int]:
    host, separator, port = address.rpartition(":")
    if separator and not host:
        host = "?"  # nobody is meant to listen everywhere by a slip
    if not (port.isascii() and port.isdecimal() and int(port) < 65536) or host == "?":
        raise UsageError(f"--http {address}: write PORT or HOST:PORT, such as 8787 or 127.0.0.1:8787")
    return host.removeprefix("[").removesuffix("]") or HOST, int(port)


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--http: {host!r} is no address of a host; give one of this machine's") from error


def _read_token(file: Path) -> str:
    try:
        mode, token = file.stat().st_mode, read_regular(file, LONGEST_TOKEN).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the token in {file}: {error.strerror}; check --token-file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the token in {file} is not ASCII; make one with: openssl rand -hex 32") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"every user of this machine can read or write the token in {file}; do: chmod 600 {file}")
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{file} must hold one token of at least {SHORTEST_TOKEN} characters without spaces; make one with: "
            "openssl rand -hex 32"
        )
    return token
