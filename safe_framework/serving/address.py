"""Whether an address can be listened on, asked before a model is loaded."""

from __future__ import annotations

import errno
import socket

from safe_framework.errors import SafeError

_LAST_PORT = 65_535


def check_address(host: str, port: int) -> None:
    """Refuse an address that nobody could reach a server at.

    Args:
        host: a name or an address of this machine.
        port: of it; 0 for one that is free.

    Raises:
        SafeError: the port is taken, forbidden or out of range, or the host is not this machine.
    """
    if not 0 <= port <= _LAST_PORT:
        raise SafeError(f"there is no port {port}", hint=f"ports end at {_LAST_PORT}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except (OSError, UnicodeError) as error:
        raise _refused(host, port, error) from error


def _refused(host: str, port: int, error: Exception) -> SafeError:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return SafeError(
            f"port {port} of `{host}` is in use",
            hint="name another with --port, or end the program that listens there",
        )
    if code == errno.EACCES:
        return SafeError(
            f"port {port} is not open to this user", hint="name one from 1024 on with --port"
        )
    return SafeError(
        f"`{host}` cannot be listened on: {getattr(error, 'strerror', None) or error}",
        hint="--host is 127.0.0.1 for this machine alone, 0.0.0.0 for whoever reaches it",
    )
