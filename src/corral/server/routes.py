"""Rows of the APIs' tables of routes: what answers which path, and who may call it."""

import enum
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.server.work import Work

CALLER = "corral.caller"  # the scope's key for a request's Caller, which a layer sets


class Access(enum.IntEnum):
    """What a caller may do; each may also do what those before it may."""

    ANYONE = 0  # see that a server is there
    USER = 1  # use models, and see which there are
    ADMIN = 2  # change which models there are


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as the layers know; `refusal` says why its access is not the highest."""

    access: Access
    refusal: str = ""

    def require(self, access: Access) -> None:
        """Raise the HTTPException 403 unless the caller has this access."""
        if self.access < access:
            raise HTTPException(403, self.refusal)


@dataclass(frozen=True, slots=True)
class Row:
    """One route: method and path, what answers a request, and the access that its caller needs."""

    method: str
    path: str  # as starlette writes it
    answer: Callable[[Request], Awaitable[Response | Work]]
    access: Access = Access.USER

    def route(self) -> Route:
        """The same for starlette, with the caller checked."""

        async def checked(request: Request) -> Response | Work:
            caller: Caller = request.scope[CALLER]
            caller.require(self.access)
            return await self.answer(request)

        return Route(self.path, checked, methods=[self.method])


def router(rows: Iterable[Row]) -> ASGIApp:
    """The application of these routes; it raises the HTTPExceptions 404 and 405 for what is no route."""
    # Redirects would trust the Host header.
    routes = Router([row.route() for row in rows], redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = routes  # without it, starlette answers 404 and 405 itself
        await routes(scope, receive, send)

    return app
