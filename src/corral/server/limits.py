"""How much a request may bring, and how long it may take to bring it."""

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral.config import Settings

MAX_BODY = 16 * 2**20  # bytes
BODY_TIMEOUT = 60.0  # seconds from the headers to the body's end


class BodyLimitLayer:
    """Refuses a body as soon as it is announced too long, is too long, or is too slow."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts; 413 or 408 where that is too much."""
        if scope["type"] == "http":
            announced = Headers(scope=scope).get("content-length", "0")
            if not announced.isdecimal() or int(announced[:20]) > MAX_BODY:
                raise _too_large()
            receive = _limited(receive)
        await self.app(scope, receive, send)


def _limited(receive: Receive) -> Receive:
    size, complete = 0, False
    deadline = asyncio.get_running_loop().time() + BODY_TIMEOUT

    async def receive_within_limits() -> Message:
        nonlocal size, complete
        if complete:  # what comes now is the client's going
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the request body took longer than {BODY_TIMEOUT:.0f} seconds"
            ) from None
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            raise _too_large()
        complete = not message.get("more_body", False)
        return message

    return receive_within_limits


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request body is larger than {MAX_BODY >> 20} MiB")
