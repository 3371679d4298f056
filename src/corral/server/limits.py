"""What is checked before a request is believed: where it comes from, and how much it brings."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral.server.faults import body_for, fault

MAX_BODY = 16 * 2**20
BODY_TIMEOUT = 60.0

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


async def read_body(request: Request) -> bytes:
    """The whole body, refused as soon as it is too long or too slow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise _too_large()
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the request body took longer than {BODY_TIMEOUT:.0f} seconds") from None
    return b"".join(parts)


class Gate:
    """Middleware: the Host header against DNS rebinding, the Origin, and the announced body length."""

    def __init__(self, app: ASGIApp, host: str, origins: Iterable[str] = ()):
        self.app = app
        self.loopback = is_loopback(host)
        self.own_name = socket.gethostname().lower()
        patterns = [*DEFAULT_ORIGINS, *(re.escape(origin).replace(r"\*", ".*") for origin in origins)]
        self.origins = re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, answer a preflight, or pass on with CORS headers added to the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        try:
            self._check(headers, origin)
        except HTTPException as refusal:
            found = fault(refusal)
            body = body_for(scope["path"], found)
            await Response(body, found.status, media_type="application/json")(scope, receive, send)
            return
        if origin:
            send = _with_cors(send, origin)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, headers: Headers, origin: str) -> None:
        host = headers.get("host", "")
        if self.loopback and not self._known_host(host):
            raise HTTPException(403, f"the Host header '{host[:100]}' does not name this machine")
        same = origin in (f"http://{host}", f"https://{host}")
        if origin and not same and not self.origins.fullmatch(origin):
            raise HTTPException(403, f"requests from the web page '{origin[:100]}' are not allowed")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MAX_BODY:
            raise _too_large()

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


_PREFLIGHT = {
    "access-control-allow-methods": _METHODS,
    "access-control-allow-headers": _HEADERS,
    "access-control-max-age": "43200",
}


def _with_cors(send: Send, origin: str) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers["vary"] = "Origin"
        await send(message)

    return answer


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request body is larger than {MAX_BODY >> 20} MiB")
