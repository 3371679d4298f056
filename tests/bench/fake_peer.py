"""A server program: `fake_peer.py PORT IDENTITY [die-after N | die | late]`."""

import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from streaming_server import StreamingServer


def main() -> None:
    port, identity, *odd = sys.argv[1:]
    if odd == ["die"]:
        sys.exit("cannot open the model")
    if odd == ["late"]:
        time.sleep(60)
    server = StreamingServer(identity, int(port))
    server.pages["/health"] = "ok"
    server.pause = 0.002  # or all tokens come at one moment, and there is no rate
    if odd[:1] == ["die-after"]:
        server.misbehave_after = int(odd[1])
        server.misbehave = lambda handler: os._exit(7)
    threading.Event().wait()


main()
