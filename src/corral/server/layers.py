"""The layers around the routes: plain ASGI, each made of the application within it and the settings.

A layer refuses a request by raising; FaultLayer tells the client, in the shape of the API that it called.
Headers that a layer adds to all answers, errors included, are in scope[faults.ANSWER_HEADERS]. The parts of a
stream go past all layers while scope[work.PARTS] is there.
"""

from collections.abc import Callable

from starlette.types import ASGIApp

from corral.config import Settings
from corral.server.faults import FaultLayer
from corral.server.limits import BodyLimitLayer
from corral.server.origins import OriginLayer

# Outermost first.
LAYERS: tuple[Callable[[ASGIApp, Settings], ASGIApp], ...] = (FaultLayer, OriginLayer, BodyLimitLayer)


def with_layers(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application inside all layers."""
    for layer in reversed(LAYERS):
        app = layer(app, settings)
    return app
