"""A program in a real pseudo-terminal: type into it, wait for what it shows."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

DEADLINE = 60.0  # seconds; only a program that hangs ever waits so long


class Terminal:
    def __init__(self, command, env):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.raw, self.seen = b"", 0

    @property
    def text(self):
        """What has been shown, without the escape sequences."""
        text = self.raw.decode("utf-8", "replace")
        return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])", "", text).replace("\r", "")

    def expect(self, wanted):
        """Wait until `wanted` is shown after what was expected before."""
        deadline = time.monotonic() + DEADLINE
        while wanted not in self.text[self.seen :]:
            if not self._read(deadline):
                raise AssertionError(f"{wanted!r} never came; there is {self.text[self.seen :]!r}")
        self.seen += self.text[self.seen :].index(wanted) + len(wanted)

    def type(self, text):
        os.write(self.master, text.encode())

    def line(self, text):
        """Wait for the prompt, then type a line."""
        self.expect(">>> ")
        self.type(text + "\r")

    def wait(self):
        """The exit code, and everything shown."""
        while self._read(time.monotonic() + DEADLINE):
            pass
        return self.process.wait(DEADLINE), self.text

    def _read(self, deadline):
        if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        if b"\x1b[6n" in data:
            os.write(self.master, b"\x1b[1;1R")  # where the cursor is, as a terminal would answer
        self.raw += data
        return bool(data)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
