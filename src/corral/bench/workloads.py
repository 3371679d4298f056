"""The workloads by name: who asks what, and when."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from corral.bench.dialects import DIALECTS, Ask
from corral.bench.exchange import BadReply, fetch
from corral.bench.figures import reply_figures, stall_figures
from corral.bench.prompts import Prompts
from corral.bench.target import Meter, Stream, Target, TimedReply, ask

MIXED_PROMPTS = (
    60,
    350,
    120,
    500,
    250,
    90,
    420,
    180,
    300,
    40,
    650,
    220,
    140,
    480,
    70,
    390,
    270,
    330,
    110,
    450,
)
MIXED_REPLIES = (200, 64, 256, 96, 32, 160, 128)
_UNLOAD = 2.0  # seconds that a server has to unload a model
LONG_PROMPT, TAIL, SHORT_REPLY = 2000, 16, 16  # tokens
STREAM_PROMPT, STREAM_REPLY, QUIET_PIECES = 128, 1500, 48


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement to make. `seed` makes its prompts differ from all others."""

    target: Target
    prompts: Prompts
    users: int
    seed: str
    size: tuple[int, int] = (512, 256)  # tokens of a prompt and of a reply, in the standard workload


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a workload gave."""

    figures: dict[str, float]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of some users. `users` are its usual numbers of them, `context` the tokens that one needs."""

    name: str
    about: str
    run: Callable[[Job, Meter], Coroutine[Any, Any, Outcome]]
    users: tuple[int, ...]
    context: int


async def _standard(job: Job, meter: Meter) -> Outcome:
    prompt, reply = job.size
    asks = [Ask(job.prompts.text(prompt, f"{job.seed} {user}"), reply) for user in range(job.users)]
    return _outcome(await _side_by_side(job.target, asks, meter))


async def _mixed(job: Job, meter: Meter) -> Outcome:
    asks = [
        Ask(
            job.prompts.text(MIXED_PROMPTS[user % len(MIXED_PROMPTS)], f"{job.seed} {user}"),
            MIXED_REPLIES[user % len(MIXED_REPLIES)],
        )
        for user in range(job.users)
    ]
    return _outcome(await _side_by_side(job.target, asks, meter))


async def _shared_prefix(job: Job, meter: Meter) -> Outcome:
    texts = [
        job.prompts.continued(LONG_PROMPT, f"{job.seed} prefix", LONG_PROMPT + TAIL, f"{job.seed} {user}")
        for user in range(job.users + 1)
    ]
    asks = [Ask(text, SHORT_REPLY, reuse_prefix=True) for text in texts]
    (cold,) = await _side_by_side(job.target, asks[:1], meter)
    outcome = _outcome(await _side_by_side(job.target, asks[1:], meter))
    if cold.error:
        return Outcome(
            outcome.figures | {"failures": outcome.figures["failures"] + 1}, (cold.error, *outcome.problems)
        )
    return Outcome({"cold_first_token": cold.first, **outcome.figures}, outcome.problems)


async def _newcomer(job: Job, meter: Meter) -> Outcome:
    streams = [Stream(STREAM_REPLY, job.target.dialect, meter) for _ in range(job.users)]
    tasks = [
        asyncio.create_task(
            ask(
                job.target,
                Ask(job.prompts.text(STREAM_PROMPT, f"{job.seed} {user}"), STREAM_REPLY),
                stream=stream,
            )
        )
        for user, stream in enumerate(streams)
    ]
    try:
        await _until_pieces(streams, tasks, 2)
        quiet_from = time.perf_counter()
        await _until_pieces(streams, tasks, 2 + QUIET_PIECES)
        long = Ask(job.prompts.text(LONG_PROMPT, f"{job.seed} newcomer"), SHORT_REPLY)
        newcomer = await ask(job.target, long, meter)
        ended_before = sum(task.done() for task in tasks)
        await _until_pieces(streams, tasks, 1)  # the wait that the newcomer falls into has an end
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    replies = [end for end in ends if isinstance(end, TimedReply)]
    errors = [reply.error for reply in (*replies, newcomer) if reply.error]
    figures: dict[str, float] = {"failures": len(errors)}
    if newcomer.arrivals:
        figures |= stall_figures([stream.reply(quiet_from) for stream in streams], newcomer, quiet_from)
        figures["newcomer_prompt_tokens"] = newcomer.prompt_tokens
    if ended_before and not errors:
        errors.append(
            f"{ended_before} of {job.users} streaming users were at their end before the newcomer was"
        )
    return Outcome(figures, tuple(dict.fromkeys(errors)))


async def _reload(job: Job, meter: Meter) -> Outcome:
    """Unload the model, as Ollama's API can, and ask for a few tokens."""
    unload = msgspec.json.encode({"model": job.target.model, "prompt": "", "keep_alive": 0, "stream": False})
    try:
        await fetch(job.target.address, DIALECTS["ollama"].path, unload, job.target.limit)
    except BadReply as error:
        return Outcome({"failures": 1}, (f"this server does not unload a model when asked: {error}",))
    await asyncio.sleep(_UNLOAD)
    (reply,) = await _side_by_side(job.target, [Ask(job.prompts.text(16, job.seed), 4)], meter)
    if reply.error:
        return Outcome({"failures": 1}, (reply.error,))
    return Outcome({"failures": 0, "load_to_first_token": reply.first})


async def _until_pieces(streams: list[Stream], tasks: "list[asyncio.Task[TimedReply]]", count: int) -> None:
    """Wait until every stream has `count` pieces more than it had, or is at its end."""
    goals = [len(stream.arrivals) + count for stream in streams]
    while any(
        len(stream.arrivals) < goal and not task.done()
        for stream, goal, task in zip(streams, goals, tasks, strict=True)
    ):
        await asyncio.sleep(0.02)


async def _side_by_side(target: Target, asks: list[Ask], meter: Meter) -> list[TimedReply]:
    return list(await asyncio.gather(*(ask(target, each, meter) for each in asks)))


def _outcome(replies: list[TimedReply]) -> Outcome:
    problems = dict.fromkeys(reply.error for reply in replies if reply.error)
    return Outcome(reply_figures(replies), tuple(problems)[:3])


USERS = (1, 5, 10, 20)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "standard", "512 tokens of prompt, 256 generated, all prompts different", _standard, USERS, 1024
        ),
        Workload(
            "shared-prefix",
            "2,000 tokens that all users share, then 16 of their own",
            _shared_prefix,
            (1,),
            2304,
        ),
        Workload("newcomer", "a prompt of 2,000 tokens while others stream", _newcomer, (4,), 2304),
        Workload("reload", "the model unloaded (for everybody), then 16 tokens", _reload, (1,), 1024),
        Workload("mixed", "prompts of 40 to 650 tokens, replies of 32 to 256", _mixed, (20,), 1024),
    )
}
