"""The one path of every generated token: lease the model, tokenise, run the sequences, give their text.

A token's way back has no task and no queue in it: the engine's client calls a run, which calls `emit`.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence

from corral.engine.protocol import Output
from corral.errors import EngineFailed
from corral.pool.pool import LoadedModel, Pool
from corral.server.generation import Admitted, Delta, Event, Finished, Generation, TokenisedPrompt, WholeReply
from corral.server.prompts import read_prompts
from corral.server.reply import PromptScores, Reply
from corral.text.messages import Text, Thought
from corral.types import SamplingParams, Scores

Emit = Callable[[Event], None]


async def generate(
    pool: Pool,
    generation: Generation,
    emit: Emit,
    *,
    begin: Callable[[], Awaitable[None]] | None = None,
    default_context: int = 0,
) -> None:
    """Emit Admitted, then Deltas and one Finished for each reply. Cancelling this cancels every sequence.

    `begin` is awaited once the first event of a reply has been emitted: an answer that begins no earlier can
    still have the status of an error that comes before.
    """
    asked = time.perf_counter_ns()
    async with pool.lease(generation.model, keep_alive=generation.keep_alive) as model:
        load_ns = time.perf_counter_ns() - asked
        prompts, params = await read_prompts(model, generation, default_context)
        emit(Admitted(prompts, load_ns))
        runs = _Runs(model, generation, emit, asked)
        try:
            runs.start(prompts, params)
            await runs.begun
            if begin:
                await begin()
            await runs.done
        finally:
            runs.cancel()


class _Runs:
    """All sequences of one request."""

    def __init__(self, model: LoadedModel, generation: Generation, emit: Emit, asked: int):
        self.model, self.generation, self.emit, self.asked = model, generation, emit, asked
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.unfinished: set[_Run] = set()

    def start(self, prompts: Sequence[TokenisedPrompt], params: SamplingParams) -> None:
        """Start every prompt's first reply; the others follow when it has a token, and then find the prompt
        in the prefix cache."""
        firsts = []
        for place, prompt in enumerate(prompts):
            scores = PromptScores()
            first, *others = (
                _Run(self, params, prompt, (place, n), scores) for n in range(self.generation.n)
            )
            first.followers = others
            firsts.append(first)
            self.unfinished.update([first, *others])
        for run in firsts:
            run.start()

    def emit_all(self, events: Sequence[Event]) -> None:
        """Emit a run's events; the request has begun with the first."""
        for event in events:
            self.emit(event)
        if events and not self.begun.done():
            self.begun.set_result(None)

    def finish(self, run: "_Run") -> None:
        """Note that a reply is complete; with the last one the request is done."""
        self.unfinished.discard(run)
        if not self.unfinished and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the request with the error of one of its replies."""
        self.cancel()
        future = self.done if self.begun.done() else self.begun
        if not future.done():
            future.set_exception(error)

    def cancel(self) -> None:
        """Cancel every sequence that has not finished."""
        unfinished, self.unfinished = self.unfinished, set()
        for run in unfinished:
            run.cancel()


class _Run:
    """One sequence: a prompt's reply number `child`."""

    def __init__(
        self,
        runs: _Runs,
        params: SamplingParams,
        prompt: TokenisedPrompt,
        place: tuple[int, int],
        scores: PromptScores,
    ):
        generation, model = runs.generation, runs.model
        self.runs, self.scores = runs, scores
        self.engine = model.engine
        index, child = place[0] * generation.n + place[1], place[1]
        self.params = _with_seed_of(child, params)
        # The first child has the prompt's scores, for all of them.
        self.wanted = Scores(generation.scores.logprobs) if child else generation.scores
        self.reply = Reply(index, model, generation, params, prompt, asked=runs.asked)
        self.to_echo = generation.echo
        self.followers: Sequence[_Run] = ()
        self.id: int | None = None  # in the engine

    def start(self) -> None:
        """Submit the sequence to the engine."""
        self.id = self.engine.submit(self.reply.prompt.ids, self.params, self.take, self.wanted)

    def cancel(self) -> None:
        """End the sequence before its time; one that has ended or was never submitted stays as it is."""
        if self.id is not None:
            self.engine.cancel(self.id)

    def take(self, output: Output | EngineFailed) -> None:
        """Pass on what the engine gives. No error may reach the engine's client, which serves others too."""
        if self not in self.runs.unfinished:
            return
        try:
            self._pass_on(output)
        except Exception as error:
            self.runs.fail(error)

    def _pass_on(self, output: Output | EngineFailed) -> None:
        if isinstance(output, Exception):
            raise output
        if output.error:
            raise EngineFailed(output.error)
        if self.to_echo:
            self.to_echo = False
            self.scores.fill(output.prompt_logprobs)
            self.runs.emit_all([self.reply.echo(self.scores.values)])
        self.runs.emit_all(self.reply.push(output))
        followers, self.followers = self.followers, ()
        for run in followers:
            run.start()
        if self.reply.finished:
            if output.finish is None:
                self.cancel()
            self.runs.finish(self)


def _with_seed_of(child: int, params: SamplingParams) -> SamplingParams:
    """Parameters of a prompt's reply number `child`, whose seed is counted from the request's."""
    if params.seed is None or not child:
        return params
    return dataclasses.replace(params, seed=(params.seed + child) % 2**64)


class Collected:
    """A whole generation: `take` gets its events, `replies` gives each reply in one piece."""

    def __init__(self) -> None:
        self.admitted: Admitted
        self._deltas: dict[int, list[Delta]] = {}
        self._finished: dict[int, Finished] = {}

    def take(self, event: Event) -> None:
        """Keep an event."""
        match event:
            case Admitted():
                self.admitted = event
            case Delta():
                self._deltas.setdefault(event.index, []).append(event)
            case Finished():
                self._finished[event.index] = event

    def replies(self) -> list[WholeReply]:
        """Each reply, in order."""
        return [
            _whole(self._deltas.get(index, ()), self._finished[index]) for index in sorted(self._finished)
        ]


def _whole(deltas: Sequence[Delta], end: Finished) -> WholeReply:
    text = "".join(delta.said.text for delta in deltas if isinstance(delta.said, Text))
    thoughts = "".join(delta.said.text for delta in deltas if isinstance(delta.said, Thought))
    return WholeReply(text, thoughts, tuple(token for delta in deltas for token in delta.tokens), end)
