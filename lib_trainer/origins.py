"""Who asks: the rules by which a page of another web site is told from a page of this server.

A browser sends `Origin` with every request that may change something and with every WebSocket (RFC 6454), `Host` as
the user or a name server has it, and, the newer ones, `Sec-Fetch-Site` (W3C Fetch Metadata). Programs that are no
browser send no origin and are not asked for one.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: lower-case names and values, a name as often as it was sent."""


def header(headers: Iterable[tuple[bytes, bytes]], name: str) -> list[str]:
    """Every value that was sent under a name (lower case)."""
    return [value.decode("latin-1") for key, value in headers if key == name.encode()]


def is_loopback(host: str) -> bool:
    """Whether an address to listen at reaches this machine only. A name other than localhost is taken for public."""
    bare = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare == "localhost"


def host_name(text: str) -> str:
    """The name or address in a `Host` header, without its port and brackets; empty if there is none."""
    try:
        return (urlsplit(f"//{text}").hostname or "").lower()
    except ValueError:
        return ""


def names_of(host: str) -> frozenset[str]:
    """The names that a server listening at `host` answers to, beside addresses in figures."""
    own = {host.strip("[]").lower()}
    if not is_loopback(host):
        own |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return LOOPBACK_NAMES | own


def is_address(name: str) -> bool:
    """Whether a host name is an IP address in figures, which no foreign name server can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(origin: str, host: str) -> bool:
    """Whether the page at `origin` came from the server that is asked as `host`: name and port are the same."""
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        if page.scheme not in DEFAULT_PORTS or not page.hostname:
            return False
        port = DEFAULT_PORTS[page.scheme]
        return (page.hostname, page.port or port) == (server.hostname, server.port or port)
    except ValueError:  # a port that is no number
        return False


def foreign_page(headers: Headers) -> str:
    """Why a request comes from another site's page, as one sentence; empty if it does not."""
    hosts, origins = header(headers, "host"), header(headers, "origin")
    if len(hosts) != 1 or len(origins) > 1:
        return "A request must name one host and at most one origin."
    if origins and not same_origin(origins[0], hosts[0]):
        return f"A page of {_shown(origins[0])} may not use this server."
    if any(site not in ("same-origin", "none") for site in header(headers, "sec-fetch-site")):
        return "A page of another site may not use this server."
    return ""


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:100])
