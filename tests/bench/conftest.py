import contextlib

import pytest
from streaming_server import StreamingServer


@pytest.fixture
def server():
    """Starts fake servers: `server("ollama")`."""
    with contextlib.ExitStack() as stack:

        def start(identity="corral"):
            started = StreamingServer(identity)
            stack.callback(started.server_close)
            stack.callback(started.shutdown)
            return started

        yield start
