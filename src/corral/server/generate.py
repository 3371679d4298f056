"""The one path of every generated token: lease the model, tokenise, run the sequences, give their text."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from corral.errors import EngineFailed
from corral.pool.pool import LoadedModel, Pool
from corral.server.generation import Delta, Event, Finished, Generation, Started, TokenisedPrompt
from corral.server.prompts import read_prompts
from corral.server.reply import PromptScores, Reply
from corral.types import SamplingParams


async def generate(
    pool: Pool, generation: Generation, default_context: int = 0
) -> AsyncGenerator[Event, None]:
    """Started, then Deltas and one Finished for each reply. Closing the iterator cancels every sequence."""
    begun = time.perf_counter_ns()
    async with pool.lease(generation.model, keep_alive=generation.keep_alive) as model:
        load_ns = time.perf_counter_ns() - begun
        prompts, params = await read_prompts(model, generation, default_context)
        yield Started(prompts, load_ns)
        runs = [
            [Run(model, generation, params, prompt, (p, child)) for child in range(generation.n)]
            for p, prompt in enumerate(prompts)
        ]
        for children in runs:
            for child in children[1:]:
                child.scores = children[0].scores
        single = len(prompts) == generation.n == 1
        async with aclosing(runs[0][0].events() if single else _merged(runs)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    event = dataclasses.replace(event, total_ns=time.perf_counter_ns() - begun)
                yield event


class Run:
    """One sequence: a prompt's reply number `child`."""

    def __init__(
        self,
        model: LoadedModel,
        generation: Generation,
        params: SamplingParams,
        prompt: TokenisedPrompt,
        place: tuple[int, int],
    ):
        self.model, self.prompt = model, prompt
        self.generation = generation
        self.index = place[0] * generation.n + place[1]
        self.params = _child_params(params, generation.echo, place[1])
        self.scores = PromptScores()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The reply's Deltas, then Finished; the engine's sequence ends with the iterator."""
        reply = Reply(
            self.index,
            self.model.tokenizer,
            self.params,
            skip_special=self.generation.skip_special,
            prompt_tokens=len(self.prompt.ids),
        )
        outputs = self.model.engine.generate(list(self.prompt.ids), self.params)
        echoed = not self.generation.echo
        async with aclosing(outputs):
            async for output in outputs:
                if output.error:
                    raise EngineFailed(output.error)
                if not echoed:
                    echoed = True
                    self.scores.fill(output.prompt_logprobs)
                    yield reply.echo(self.prompt, self.scores.values)
                for event in reply.push(output):
                    yield event
                if reply.finished:
                    return
        raise EngineFailed("the engine ended a reply without saying why")


def _child_params(params: SamplingParams, echo: bool, child: int) -> SamplingParams:
    """Children differ by their seed; the prompt is scored by the first one only."""
    seed = params.seed
    if seed is not None and child:
        seed = (seed + child) % 2**64
    scored = params.logprobs if echo and child == 0 else None
    return dataclasses.replace(params, seed=seed, prompt_logprobs=scored)


async def _merged(runs: Sequence[Sequence[Run]]) -> AsyncGenerator[Event, None]:
    """The events of many sequences as they come. A prompt's first child runs ahead until it has a token:
    the others then find the prompt in the prefix cache."""
    inbox: asyncio.Queue[Event | BaseException] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(run: Run, followers: Sequence[Run]) -> None:
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    inbox.put_nowait(event)
                    start(followers)
                    followers = ()
        except Exception as error:
            inbox.put_nowait(error)

    def start(these: Sequence[Run], followers: Sequence[Run] = ()) -> None:
        for run in these:
            task = asyncio.create_task(pump(run, followers))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    left = sum(len(children) for children in runs)
    try:
        for children in runs:
            start(children[:1], children[1:])
        while left:
            event = await inbox.get()
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event, Finished)
            yield event
    finally:
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collect(events: AsyncGenerator[Event, None]) -> tuple[Started, list[Delta], list[Finished]]:
    """Run a generation to its end: each reply as one Delta, in order."""
    started: Started | None = None
    texts: dict[int, list[Delta]] = {}
    finished: dict[int, Finished] = {}
    async with aclosing(events):
        async for event in events:
            match event:
                case Started():
                    started = event
                case Delta():
                    texts.setdefault(event.index, []).append(event)
                case Finished():
                    finished[event.index] = event
    assert started is not None
    order = sorted(finished)
    return started, [_joined(index, texts.get(index, [])) for index in order], [finished[i] for i in order]


def _joined(index: int, deltas: list[Delta]) -> Delta:
    text = "".join(delta.text for delta in deltas)
    return Delta(index, text, tuple(token for delta in deltas for token in delta.tokens))
