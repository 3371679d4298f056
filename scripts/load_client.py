"""A light load client: users side by side on any OpenAI-compatible server, over raw sockets.

Every user has its own random prompt, so that no prefix is shared; replies always have `max_tokens` tokens.
"""

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass

WORDS = (  # noqa: SIM905
    "apple anchor basket bridge candle carpet copper corner cotton dinner dragon engine fabric farmer "
    "garden glass hammer harbor island jacket kettle ladder lantern marble market meadow mirror needle "
    "orange paper pencil planet pocket quarry ribbon river saddle silver spring stable summer table "
    "thunder timber tunnel velvet village violin walnut window winter wonder yellow"
).split()


@dataclass(frozen=True)
class Reply:
    """One user's reply; times in seconds."""

    first: float  # to the first token
    total: float
    prompt_tokens: int
    tokens: int

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first."""
        return (self.tokens - 1) / max(1e-9, self.total - self.first)


def prompt(seed: int, words: int) -> str:
    """A text of `words` words that no other seed shares."""
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(words))


async def complete(port: int, model: str, text: str, max_tokens: int) -> Reply:
    """Stream one completion and time it; RuntimeError with the server's words if it is refused."""
    body = {
        "model": model,
        "prompt": text,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + data)
    first = last = 0.0
    usage: dict[str, int] = {}
    if b" 200 " not in await reader.readline():
        raise RuntimeError((await reader.read()).decode(errors="replace")[-300:])
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        if b'"text":' in line:
            last = time.perf_counter()
            first = first or last
        if b'"completion_tokens"' in line:
            usage = json.loads(line[6:]).get("usage") or usage
    writer.close()
    return Reply(first - start, last - start, usage["prompt_tokens"], usage["completion_tokens"])


async def load(
    port: int, model: str, users: int, *, words: int, max_tokens: int, seed: int
) -> dict[str, float]:
    """Run `users` completions side by side; medians, and tokens a second over all."""
    start = time.perf_counter()
    replies = await asyncio.gather(
        *(complete(port, model, prompt(seed * 1000 + user, words), max_tokens) for user in range(users))
    )
    wall = time.perf_counter() - start
    return {
        "users": users,
        "prompt_tokens": replies[0].prompt_tokens,
        "first_token_s": statistics.median(reply.first for reply in replies),
        "user_decode_tps": statistics.median(reply.decode_rate for reply in replies),
        "total_new_tps": sum(reply.tokens for reply in replies) / wall,
    }
