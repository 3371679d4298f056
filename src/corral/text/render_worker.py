"""The process that renders chat templates: `python -m corral.text.render_worker`, frames on stdin and stdout.

A template is a program of the model's author. minijinja bounds its steps but not its memory, and ends the
process where memory runs out: this process, then, and not the server.
"""

import contextlib
import resource
import sys

import msgspec

from corral.text.jinja import render, variables
from corral.text.render_frames import Answer, Task, TemplateFailed, read_frame, write_frame

MEMORY = 256 << 20  # bytes that rendering may take beside the process's own


def main() -> None:
    """Answer tasks until stdin ends."""
    _limit_memory()
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        write_frame(sys.stdout.buffer, _answer(msgspec.msgpack.decode(frame, type=Task)))


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(task: Task) -> Answer:
    try:
        if task.context is None:
            return Answer(variables=variables(task.source))
        return Answer(text=render(task.source, task.context))
    except TemplateFailed as error:
        return Answer(text=error.message, failure=error.kind)
    except MemoryError:
        return Answer(text="it takes too much memory", failure="failed")


if __name__ == "__main__":
    main()
