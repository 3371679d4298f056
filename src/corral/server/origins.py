"""Where a request comes from: the Host header against DNS rebinding, and the web page that sends it."""

import ipaddress
import re
import socket

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.config import Settings
from corral.server.faults import ANSWER_HEADERS
from corral.server.routes import CALLER, Access, Caller

DEFAULT_ORIGINS = (
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d+)?",
    r"(app|file|tauri|vscode-webview|vscode-file)://.*",
)
_METHODS = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
_HEADERS = (
    "Authorization, Content-Type, User-Agent, Accept, X-Requested-With, OpenAI-Beta, X-Api-Key, "
    "Anthropic-Version, "
    "x-stainless-arch, x-stainless-async, x-stainless-custom-poll-interval, x-stainless-helper-method, "
    "x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-poll-helper, "
    "x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout"
)
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


class OriginLayer:
    """Refuses hosts that are not this machine, and says what a caller may do by the web page that it is.

    Who is no web page may do everything. So may a page of this server, of this machine or of an origin that
    the operator allows, and it may read the answers (CORS). Any other page may do what anyone may.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.loopback = is_loopback(settings.host)
        self.own_name = socket.gethostname().lower()
        allowed = (re.escape(origin).replace(r"\*", ".*") for origin in settings.origins)
        patterns = "|".join(f"(?:{pattern})" for pattern in (*DEFAULT_ORIGINS, *allowed))
        self.origins = re.compile(patterns, re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, answer a preflight, or pass the request on with its caller."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if self.loopback and not self._known_host(host):
            raise HTTPException(403, f"the Host header '{host[:100]}' does not name this machine")
        caller = scope[CALLER] = self._caller(host, origin)
        if origin and caller.access:
            scope[ANSWER_HEADERS] = [(b"access-control-allow-origin", origin.encode("latin-1")), _VARY]
        if origin and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            caller.require(Access.USER)
            await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _caller(self, host: str, origin: str) -> Caller:
        same = origin in ("", f"http://{host}", f"https://{host}")
        if same or self.origins.fullmatch(origin):
            return Caller(Access.ADMIN)
        return Caller(Access.ANYONE, f"requests from the web page '{origin[:100]}' are not allowed")

    def _known_host(self, header: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/?#@\s]*)(?::\d{1,5})?", header)
        if not match:
            return False
        name = match[1].strip("[]").rstrip(".").lower()
        if name in ("", "localhost", self.own_name) or name.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address.is_private or address.is_unspecified


_VARY = (b"vary", b"Origin")
_PREFLIGHT = {
    "access-control-allow-methods": _METHODS,
    "access-control-allow-headers": _HEADERS,
    "access-control-max-age": "43200",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
