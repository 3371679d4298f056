"""A server process over the fake engine: prints its port, then `stopped` once its engines are.

usage: serve_fakes.py SCRIPT_JSON DRAIN_TIMEOUT [PORT]
"""

import json
import sys

import corral.server.serve as serving
from corral.config import Settings
from fake_engine import FakeEngine, FakePool, FakeStore, Script


class Pool(FakePool):
    def __init__(self, store, settings, start_engine):
        super().__init__(FakeStore("tiny"), FakeEngine(Script(**json.loads(sys.argv[1]))))

    async def close(self):
        assert not self.engine.running and not self.leases
        print("stopped", flush=True)


serving.Pool = Pool
serving.Store = lambda root: FakeStore("tiny")
settings = Settings(port=int(sys.argv[3]) if len(sys.argv) > 3 else 0, drain_timeout=float(sys.argv[2]))
sys.exit(serving.serve(settings, on_listening=lambda host, port: print(port, flush=True)))
