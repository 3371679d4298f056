"""One conversation with a model: what was said, how to sample, and the stream of a reply."""

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from corral.cli.client import Client, Json
from corral.cli.exits import ApiError
from corral.cli.render import go_duration


@dataclass
class Chat:
    """A conversation with one model; `messages` grows with every question and reply."""

    client: Client
    model: str
    system: str = ""
    options: Json = field(default_factory=dict)
    keep_alive: str | None = None
    messages: list[Json] = field(default_factory=list)

    def load(self) -> None:
        """Have the server load the model, before the first question."""
        self.client.call("POST", "/api/chat", self._body([]) | {"stream": False})

    def say(self, text: str, write: Callable[[str], None]) -> Json:
        """Send `text`, `write` the reply as it comes, and return the final statistics.

        An interrupted reply stays in the conversation as far as it got.
        """
        self.messages.append({"role": "user", "content": text})
        reply: list[str] = []
        try:
            for chunk in self._chunks():
                piece = str((chunk.get("message") or {}).get("content") or "")
                if piece:
                    reply.append(piece)
                    write(piece)
                if chunk.get("done"):
                    return chunk
            raise ApiError(502, "the reply ended before it was finished")
        finally:
            if reply:
                self.messages.append({"role": "assistant", "content": "".join(reply)})
            else:
                self.messages.pop()

    @property
    def last_reply(self) -> str:
        """The model's last reply; empty before the first one."""
        last = self.messages[-1] if self.messages else {}
        return str(last["content"]) if last.get("role") == "assistant" else ""

    def _chunks(self) -> Generator[Json, None, None]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        with closing(self.client.stream("/api/chat", self._body([*system, *self.messages]))) as chunks:
            yield from chunks

    def _body(self, messages: list[Json]) -> Json:
        body: Json = {"model": self.model, "messages": messages, "stream": True}
        if self.options:
            body["options"] = self.options
        if self.keep_alive is not None:
            body["keep_alive"] = _keep_alive(self.keep_alive)
        return body


def write(piece: str) -> None:
    """Print a piece of a reply without waiting for the end of its line."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def print_statistics(final: Json) -> None:
    """Print the times and rates of a reply, as `--verbose` asks, on stderr."""
    rows = []
    for name in ("total_duration", "load_duration"):
        rows.append((name, go_duration(final.get(name, 0))))
    for kind in ("prompt_eval", "eval"):
        count, spent = final.get(f"{kind}_count", 0), final.get(f"{kind}_duration", 0)
        rows.append((f"{kind}_count", f"{count} token(s)"))
        if spent:
            rows.append((f"{kind}_duration", go_duration(spent)))
            rows.append((f"{kind}_rate", f"{count / spent * 1e9:.2f} tokens/s"))
    print(
        "", *(f"{name.replace('_', ' ') + ':':<22}{value}" for name, value in rows), sep="\n", file=sys.stderr
    )


def _keep_alive(text: str) -> str | float:
    """The value of keep_alive for the API: a bare number means seconds, as it does in OLLAMA_KEEP_ALIVE."""
    try:
        return float(text)
    except ValueError:
        return text
