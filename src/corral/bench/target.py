"""A server to measure, one request to it, and the times of its reply."""

import asyncio
import time
from dataclasses import dataclass, field, replace

import msgspec

from corral.bench.address import Address
from corral.bench.dialects import DIALECTS, KINDS, Ask, Dialect, ServerKind
from corral.bench.exchange import BadReply, exchange, fetch, plain
from corral.errors import UserError

_OPENAI_ROUTES = ("completions", "chat")


@dataclass(frozen=True, slots=True)
class Target:
    """A server, the model to ask for, and how to ask."""

    address: Address
    model: str
    kind: ServerKind
    dialect: Dialect
    version: str = ""
    limit: float = 600.0  # seconds for one whole answer

    @property
    def exact(self) -> bool:
        """Whether the server can be told to go on after the end of a text."""
        return self.dialect.open and "ignore_eos" in self.kind.fields

    def body(self, what: Ask) -> bytes:
        """The body of a request, with the fields that only this kind of server has."""
        body = self.dialect.body(self.model, what)
        return msgspec.json.encode(self.kind.extend(body, what) if self.dialect.open else body)


@dataclass(frozen=True, slots=True)
class TimedReply:
    """One reply; times are seconds of `time.perf_counter`. A failed one has `error`, and may have times."""

    began: float
    arrivals: tuple[float, ...] = ()  # of the pieces that bring text
    ended: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    asked: int = 0  # tokens asked for
    finish: str = ""
    error: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.began

    @property
    def rate(self) -> float:
        """Tokens a second after the first token; 0 if there is no second one."""
        seconds = self.ended - self.arrivals[0]
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else 0.0

    @property
    def gaps(self) -> list[float]:
        """Seconds between the pieces of text."""
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


@dataclass(slots=True)
class Meter:
    """How much of all replies has come so far."""

    tokens: int = 0
    done: int = 0


@dataclass(slots=True)
class Stream:
    """A reply while it comes; its tokens are added to `meter`."""

    asked: int
    dialect: Dialect
    meter: Meter
    arrivals: list[float] = field(default_factory=list)
    finish: str = ""
    ended: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0

    def take_line(self, line: bytes, now: float) -> None:
        """Read one line of the answer; BadReply if it is an error."""
        piece = self.dialect.read(line)
        if piece is None:
            return
        if piece.error:
            raise BadReply(f"the server broke off: {piece.error}")
        if piece.visible:
            self.arrivals.append(now)
            self.meter.tokens += 1
        if piece.visible or piece.finish:
            self.ended = now
        self.finish = piece.finish or self.finish
        self.prompt_tokens = max(self.prompt_tokens, piece.prompt_tokens)
        self.tokens = max(self.tokens, piece.tokens)

    def reply(self, began: float, error: str = "") -> TimedReply:
        """The reply as far as it has come."""
        tokens = self.tokens or len(self.arrivals)  # a server that does not count sends a piece a token
        if not error and not self.arrivals:
            error = "the server's answer has no text"
        elif not error and not self.finish and tokens < self.asked:
            error = "the server's answer stops without an end"
        return TimedReply(
            began,
            tuple(self.arrivals),
            self.ended,
            self.prompt_tokens,
            tokens,
            self.asked,
            self.finish,
            error,
        )


async def ask(
    target: Target, what: Ask, meter: Meter | None = None, stream: Stream | None = None
) -> TimedReply:
    """Send one request and read its reply. A failure becomes the reply's `error`, as other requests go on."""
    stream = stream or Stream(what.tokens, target.dialect, meter or Meter())
    began = time.perf_counter()
    try:
        await exchange(target.address, target.dialect.path, target.body(what), stream.take_line, target.limit)
        reply = stream.reply(began)
    except BadReply as error:
        reply = stream.reply(began, str(error))
    stream.meter.done += 1
    return reply


async def detect(address: Address, model: str, api: str = "auto", limit: float = 600.0) -> Target:
    """Find out what kind of server answers; UserError if none does, or the model is not to be had."""
    kind, version = await identify(address)
    dialect = DIALECTS[kind.dialect if api == "auto" else api]
    target = Target(address, model or await _only_model(address), kind, dialect, version, limit)
    return await _probe(target, fixed=api != "auto")


async def identify(address: Address) -> tuple[ServerKind, str]:
    """The kind of a server, by a path that only this kind answers, and its version."""
    refused = ""
    for path, field_name, name in (
        ("/health/ready", "models", "corral"),
        ("/props", "default_generation_settings", "llama-server"),
        ("/api/version", "version", "ollama"),
        ("/version", "version", "vllm"),
    ):
        said, problem = await _json(address, path)
        refused = refused or problem
        if field_name in said:
            version = said.get("version") or said.get("build_info") or ""
            return KINDS[name], plain(str(version))[:60]
    if refused:
        raise UserError(f"no server answers at {address} ({refused}). Start it, or give its URL")
    return KINDS["other"], ""


async def _json(address: Address, path: str) -> tuple[dict[str, object], str]:
    """The JSON object at `path`, {} if there is none; and the problem if no server answers."""
    try:
        said = msgspec.json.decode(await fetch(address, path))
    except BadReply as error:
        return {}, "" if error.status else str(error)
    except msgspec.DecodeError:
        return {}, ""
    return (said if isinstance(said, dict) else {}), ""


async def _only_model(address: Address) -> str:
    said, _ = await _json(address, "/v1/models")
    rows = said.get("data")
    names = (
        [plain(str(row.get("id"))) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    )
    if len(names) != 1:
        listed = ", ".join(names[:10]) or "it lists none"
        raise UserError(f"say which model to measure with --model NAME; models of {address}: {listed}")
    return names[0]


async def _probe(target: Target, *, fixed: bool) -> Target:
    """Try a short request, which also loads the model; the target with a route and fields that work."""
    tries = [target]
    if target.kind.name == "other":
        routes = [target.dialect.name] if fixed else _OPENAI_ROUTES
        tries = [
            replace(target, dialect=DIALECTS[route], kind=KINDS[kind])
            for route in routes
            for kind in ("other", "plain")
        ]
    problem = ""
    for each in tries:
        reply = await until_ready(each)
        if not reply.error:
            return each
        problem = problem or reply.error
    raise UserError(f"{target.address} does not answer for the model '{target.model}': {problem}")


async def until_ready(target: Target, wait: float = 300.0) -> TimedReply:
    """The reply to a short request; a server that still loads (503) is asked again for `wait` seconds."""
    deadline = time.perf_counter() + wait
    while True:
        reply = await ask(target, Ask("Once upon a time", 4))
        if "answered 503" not in reply.error or time.perf_counter() > deadline:
            return reply
        await asyncio.sleep(0.01)
