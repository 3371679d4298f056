"""A server's address, and the head of a request to it."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from corral.errors import UserError


@dataclass(frozen=True, slots=True)
class Address:
    """A server's host and port. `base` goes before the path of every request."""

    host: str
    port: int
    base: str = ""
    tls: bool = False
    key: str = ""  # sent as a bearer token

    def __str__(self) -> str:
        return f"{self.host}:{self.port}{self.base}"

    def head(self, method: str, path: str, size: int = 0) -> bytes:
        """The request line and headers of a request with a JSON body of `size` bytes."""
        lines = [
            f"{method} {self.base}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Connection: close",
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {size}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse_address(text: str, key: str = "") -> Address:
    """`[http[s]://]host[:port][/base]`; a `/v1` at the end is left out, as dialects bring their own."""
    given = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(given)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or any(ord(c) <= 32 for c in given + key):
        raise UserError(f"'{text}' is not a server's address like http://127.0.0.1:11434")
    tls = parts.scheme == "https"
    base = parts.path.rstrip("/").removesuffix("/v1")
    return Address(host, port or (443 if tls else 80), base, tls, key)
