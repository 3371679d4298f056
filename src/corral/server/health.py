"""What supervisors ask: whether the process answers, and whether it can work."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from corral.pool.pool import LoadedModel
from corral.server.routes import Access, Row
from corral.server.service import Service


class Health:
    """The endpoints of no API."""

    def __init__(self, service: Service):
        self.service = service

    def routes(self) -> list[Row]:
        """The table of paths."""
        return [
            Row("GET", "/health", self.live, Access.ANYONE),
            Row("GET", "/health/ready", self.ready),
        ]

    async def live(self, request: Request) -> Response:
        """GET /health: the process answers."""
        return PlainTextResponse("ok")

    async def ready(self, request: Request) -> Response:
        """GET /health/ready: takes work, and no loaded engine is stuck; how full each one is."""
        if self.service.drain.draining:
            return PlainTextResponse("draining", 503)
        loaded = self.service.pool.loaded()
        stuck = [str(model.stored.name) for model in loaded if not model.engine.healthy()]
        if stuck:
            return PlainTextResponse(f"not making progress: {', '.join(stuck)}", 503)
        return JSONResponse({"status": "ok", "models": [_fullness(model) for model in loaded]})


def _fullness(model: LoadedModel) -> dict[str, object]:
    ready = model.engine.ready
    kv = {"num_blocks": ready.num_blocks, "block_size": ready.block_size}
    memory = {"memory": msgspec.to_builtins(ready.memory)}
    return {"name": str(model.stored.name), **kv, **memory, **msgspec.structs.asdict(model.engine.occupancy)}
