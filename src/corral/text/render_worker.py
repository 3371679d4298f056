"""The process that renders chat templates: `python -m corral.text.render_worker`, frames on stdin and stdout.

A template is a program of the model's author. minijinja bounds its steps but not its memory, and ends the
process where memory runs out: this process, then, and not the server.

A frame to it is [source, context]. It answers [text, failure]: what is rendered and nothing, or a failure's
message and its kind (see TemplateFailed).
"""

import contextlib
import json
import resource
import sys
from typing import Any

from corral.text.jinja import render
from corral.text.render_frames import TemplateFailed, read_frame, write_frame

MEMORY = 256 << 20  # bytes that rendering may take beside the process's own


def main() -> None:
    """Answer tasks until stdin ends."""
    _limit_memory()
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        write_frame(sys.stdout.buffer, json.dumps(_answer(*json.loads(frame))).encode())


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(source: str, context: dict[str, Any]) -> tuple[str, str]:
    try:
        return render(source, context), ""
    except TemplateFailed as error:
        return error.message, error.kind
    except MemoryError:
        return "it takes too much memory", "failed"


if __name__ == "__main__":
    main()
