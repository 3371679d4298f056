"""Chat templates rendered in a process of their own: a hostile one costs a rendering and not the server."""

import atexit
import functools
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from corral.config import child_environment, module_path
from corral.frames import BadFrame
from corral.text.render_frames import TemplateFailed, read_frame, write_frame

TIME_LIMIT = 5.0  # seconds; the limit on steps ends nearly all that is hostile long before


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The text, or the kind of failure and its message."""

    text: str
    failure: str


class Renderer:
    """The render process: started when first needed, and again after a template has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, source: str, context: Mapping[str, Any]) -> str:
        """The text; TemplateFailed if the template fails, refuses, or takes too much memory or time."""
        task = msgspec.json.encode((source, context))
        with self._lock:
            answer = self._exchange(task)
        if answer.failure:
            raise TemplateFailed(answer.failure, answer.text)
        return answer.text

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _exchange(self, task: bytes) -> Answer:
        process = self._process = self._process or _start()
        assert process.stdin and process.stdout
        frame = None
        try:
            write_frame(process.stdin, task)
            if select.select([process.stdout], [], [], TIME_LIMIT)[0]:
                frame = read_frame(process.stdout)
        except (BrokenPipeError, BadFrame):
            pass
        except BaseException:  # half a frame may be on its way
            self._end()
            raise
        if frame is None:
            self._end()
            return Answer("it takes too much memory or time", "failed")
        return msgspec.json.decode(frame, type=Answer)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()  # reaps it and closes the pipes


@functools.cache
def shared_renderer() -> Renderer:
    """The one of this process."""
    renderer = Renderer()
    atexit.register(renderer.close)
    return renderer


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "corral.text.render_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # an abort for want of memory says so there
        env=child_environment(PYTHONPATH=module_path(), PYTHONUTF8="1"),
        start_new_session=True,  # Ctrl-C is for the server
    )
