"""The ASGI application: the routes of all APIs, inside the layers."""

from starlette.types import ASGIApp

from corral.config import Settings
from corral.pool.pool import Pool
from corral.server.dialects.ollama import OllamaText
from corral.server.dialects.ollama_models import OllamaModels
from corral.server.dialects.openai import OpenAI
from corral.server.drain import Drain
from corral.server.health import Health
from corral.server.layers import with_layers
from corral.server.routes import router
from corral.server.service import Service
from corral.store.local import Store


def create_app(settings: Settings, store: Store, pool: Pool, drain: Drain | None = None) -> ASGIApp:
    """Everything that answers on the port, for any ASGI server. `drain` is how the caller stops it gently."""
    service = Service(settings, store, pool, drain or Drain())
    tables = (Health(service), OllamaModels(service), OllamaText(service), OpenAI(service))
    return with_layers(router(row for table in tables for row in table.routes()), settings)
