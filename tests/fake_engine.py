"""A scripted engine, and a pool and store around it: the server's tests need no model.

Tokens are bytes: text is its UTF-8, so a character of several bytes is split over tokens.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from corral.engine.admission import Limits, check_request
from corral.engine.protocol import Occupancy, Output, Ready
from corral.errors import ModelNotFound
from corral.store.local import StoredModel
from corral.store.names import ModelName
from corral.text.messages import Message
from corral.text.parsers.parser import Parser, PlainParser
from corral.types import (
    CPU,
    NO_SCORES,
    DeviceMemory,
    FinishReason,
    SamplingParams,
    Scores,
    SequenceStats,
    TokenLogprob,
)

BOS, EOS, TURN = 256, 257, 258
SPECIAL = {"<bos>": BOS, "<eos>": EOS, "<turn>": TURN}
VOCABULARY = 300


class FakeTokenizer:
    vocab_size = VOCABULARY
    bos_id, eos_ids = BOS, frozenset({EOS})

    def __init__(self, add_bos: bool = True):
        self.add_bos = add_bos

    def encode(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        ids = [BOS] if add_bos else []
        while text:
            name = next((name for name in SPECIAL if special and text.startswith(name)), None)
            ids += [SPECIAL[name]] if name else text[0].encode()
            text = text[len(name or " ") :]
        return ids

    def token_bytes(self, id: int) -> bytes:
        if id < 256:
            return bytes([id])
        return next((name.encode() for name, value in SPECIAL.items() if value == id), b"<unused>")

    def is_special(self, id: int) -> bool:
        return id >= 256

    def split_special(self, text: str) -> list[int | str]:
        return [SPECIAL.get(text, text)]


class FakeTemplate:
    """`<bos>`, then a turn a message, then the opening of the reply's turn."""

    supports_system = True
    supports_thinking = False

    def __init__(self, tokenizer: FakeTokenizer):
        self.tokenizer = tokenizer

    def parser(self, prompt: Sequence[int]) -> Parser:
        return PlainParser()

    def encode(self, messages: Sequence[Message], **_: Any) -> list[int]:
        ids = [BOS]
        for message in messages:
            text = f"{message.role}:{message.text}\n"
            ids += [TURN, *self.tokenizer.encode(text, special=False, add_bos=False)]
        return [*ids, TURN, *b"assistant:"]


@dataclass
class Script:
    """What the engine answers to every request."""

    text: str = "Hello world"
    ids: tuple[int, ...] | None = None  # instead of the text
    batch: int = 1  # tokens in one Output
    cached: int = 0
    fail_after: int | None = None  # raise after so many tokens
    failure: Exception | None = None
    gate: asyncio.Event | None = None  # nothing comes before it is set
    endless: bool = False  # repeat the text until cancelled
    pause: float = 0.0
    per_seed: bool = False  # begin with the seed


@dataclass
class FakeEngine:
    """EngineClient's interface. `running` holds the requests that nobody has ended."""

    script: Script = field(default_factory=Script)
    running: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    seen: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    scored: list[Scores] = field(default_factory=list)  # what was wanted of each that was seen
    cancelled: int = 0
    alive: bool = True
    ids: Any = field(default_factory=itertools.count)
    stopped: bool = False

    ready: Ready = field(
        default_factory=lambda: Ready(
            context_length=512,
            vocab_size=300,
            num_blocks=64,
            block_size=16,
            kv_tokens=1024,
            memory={CPU: DeviceMemory(weights=1000, buffers=50, kv=3321)},
        )
    )
    occupancy: Occupancy = field(default_factory=Occupancy)

    def healthy(self) -> bool:
        return self.alive

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        take: Callable[[Output | Exception], None],
        scores: Scores = NO_SCORES,
    ) -> int:
        failure = self.script.failure
        if failure and self.script.fail_after is None:
            raise failure
        limits = Limits(self.ready.context_length, self.ready.vocab_size, self.ready.kv_tokens)
        check_request(prompt, params, limits, scores)
        id = next(self.ids)
        reply = self._outputs(id, [*prompt], params, scores)
        self.running[id] = asyncio.ensure_future(self._run(id, reply, take))
        self.seen.append(([*prompt], params))
        self.scored.append(scores)
        return id

    def cancel(self, id: int) -> None:
        task = self.running.pop(id, None)
        if task:
            self.cancelled += 1
            task.cancel()

    async def _run(
        self,
        id: int,
        reply: AsyncIterator[Output],
        take: Callable[[Output | Exception], None],
    ) -> None:
        try:
            async for output in reply:
                if output.finish is not None:
                    self.running.pop(id, None)
                take(output)
        except Exception as error:
            if self.running.pop(id, None):
                take(error)

    async def _outputs(
        self, id: int, prompt: list[int], params: SamplingParams, wanted: Scores
    ) -> AsyncIterator[Output]:
        script = self.script
        if script.gate:
            await script.gate.wait()
        scores = [None, *(_score(t, wanted.prompt_logprobs) for t in prompt[1:])]
        scores = scores if wanted.prompt_logprobs is not None else []
        tokens, reason = self._reply(prompt, params)
        if not tokens:
            yield self._output(id, prompt, [], wanted, scores, reason, 0)
            return
        sent = 0
        for start in itertools.count(0, script.batch):
            await asyncio.sleep(script.pause)
            part = tokens[start : start + script.batch]
            if script.endless:
                part = [tokens[start % len(tokens)]]
            sent += len(part)
            if script.fail_after is not None and sent > script.fail_after:
                raise script.failure or RuntimeError("the engine broke")
            last = not script.endless and start + script.batch >= len(tokens)
            yield self._output(id, prompt, part, wanted, scores, reason if last else None, sent)
            scores = []
            if last:
                return

    def _reply(self, prompt: list[int], params: SamplingParams) -> tuple[list[int], FinishReason]:
        text = f"{params.seed} {self.script.text}" if self.script.per_seed else self.script.text
        tokens = list(self.script.ids or text.encode())
        if EOS in params.stop_token_ids:
            tokens.append(EOS)
        room = (params.context or 10**9) - len(prompt)
        limit = min(room, params.max_tokens if params.max_tokens is not None else 10**9)
        for place, token in enumerate(tokens[:limit]):
            if token in params.stop_token_ids:
                return tokens[: place + 1], FinishReason.STOP
        return tokens[:limit], FinishReason.LENGTH

    def _output(
        self,
        id: int,
        prompt: list[int],
        tokens: list[int],
        wanted: Scores,
        scores: list[TokenLogprob | None],
        finish: FinishReason | None,
        sent: int,
    ) -> Output:
        logprobs = [] if wanted.logprobs is None else [_score(token, wanted.logprobs) for token in tokens]
        stats = SequenceStats(len(prompt), self.script.cached, sent, 10, 2_000_000, 3_000_000)
        return Output(id, tokens, logprobs, scores, finish, stats if finish or sent == len(tokens) else None)


def _score(token: int, alternatives: int | None) -> TokenLogprob:
    """The token itself is the likeliest, the following ids come after it."""
    top = tuple(((token + i) % VOCABULARY, -0.5 - i) for i in range(alternatives or 0))
    return TokenLogprob(token, -0.5 if token != 0 else -math.inf, top)


class FakeStore:
    """Store's interface over a list."""

    def __init__(self, *names: str, path: Path = Path("/nonexistent.gguf"), **fields: Any):
        when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
        config = {
            "model_family": "llama",
            "model_type": "134.52M",
            "file_type": "Q4_1",
            "context_length": 128,
        }
        self.models = {
            str(name): StoredModel(
                name=name, digest="ab" * 32, size=1234, modified_at=when, path=path, config=config, **fields
            )
            for name in map(ModelName.parse, names)
        }
        self.root = path.parent

    def list(self) -> "list[StoredModel]":
        return [*self.models.values()]

    def find(self, name: str | ModelName) -> StoredModel:
        name = ModelName.parse(name) if isinstance(name, str) else name
        if name.display not in self.models:
            raise ModelNotFound(name.display, next(iter(self.models), None))
        return self.models[name.display]

    def delete(self, name: str | ModelName) -> ModelName:
        return self.models.pop(self.find(name).name.display).name


class FakePool:
    """Pool's interface: one engine for every model, loaded at the first lease."""

    def __init__(self, store: FakeStore, engine: FakeEngine | None = None, context_length: int = 128):
        self.store = store
        self.engine = engine or FakeEngine()
        self.context_length = context_length
        self.models: dict[str, Any] = {}
        self.leases = 0
        self.waiting = 0
        self.keep_alives: list[float | None] = []
        self.load_gate: asyncio.Event | None = None
        self.kv_tokens = 10 * context_length
        self.closed = False
        self.tokenizer = FakeTokenizer()
        self.make_template: Callable[[FakeTokenizer], Any] = FakeTemplate

    @contextlib.asynccontextmanager
    async def lease(self, stored: StoredModel, keep_alive: float | None = None) -> AsyncIterator[Any]:
        self.keep_alives.append(keep_alive)
        self.waiting += 1
        try:
            if self.load_gate:
                await self.load_gate.wait()
        finally:
            self.waiting -= 1
        model = self.models.setdefault(stored.name.display, self._load(stored))
        self.leases += 1
        try:
            yield model
        finally:
            self.leases -= 1
            if keep_alive == 0:
                self.models.pop(stored.name.display, None)

    def _load(self, stored: StoredModel) -> Any:
        return SimpleNamespace(
            stored=stored,
            tokenizer=self.tokenizer,
            template=self.make_template(self.tokenizer),
            engine=self.engine,
            info=SimpleNamespace(context_length=self.context_length, kv_tokens=self.kv_tokens),
            size=4321,
            expires_at=None,
            load_ns=5_000_000,
        )

    def loaded(self) -> list[Any]:
        return [*self.models.values()]

    async def unload(self, name: str) -> None:
        self.models.pop(self.store.find(name).name.display, None)

    async def close(self) -> None:
        self.closed = self.engine.stopped = True
