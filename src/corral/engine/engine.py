"""The engine: takes requests, runs steps, gives outputs. One thread, no I/O."""

import time
from dataclasses import dataclass
from itertools import zip_longest

from corral.engine.admission import Limits, check_request
from corral.engine.arrays import BatchArrays, Rows, RowSpan
from corral.engine.pace import Pace
from corral.engine.protocol import Occupancy, Output, Step
from corral.engine.request import Request
from corral.engine.scheduler import Demand, Plan, Scheduler
from corral.engine.tables import BlockTables
from corral.executors.batch import Batch, Executor, StepResult
from corral.types import BLOCK_SIZE, NO_SCORES, FinishReason, SamplingParams, Scores, TokenLogprob

_SEARCHES = 32  # sequences in which a step looks for a first guess
_BAD_ROW = "the model's output for this request is not a number; its weights or this input are faulty"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a model and its operator allow."""

    context_length: int
    vocab_size: int
    batch_tokens: int = 256
    max_sequences: int = 64
    drafts: bool = True  # guess tokens ahead where that pays


class Engine:
    """Runs requests side by side on one executor; a request's result does not depend on its neighbours."""

    def __init__(self, executor: Executor, options: EngineOptions):
        self.executor = executor
        self.options = options
        batch_tokens = min(options.batch_tokens, executor.max_tokens)
        tables = BlockTables(executor.cache, executor.num_blocks, batch_tokens)
        self.scheduler = Scheduler(tables, batch_tokens=batch_tokens, max_sequences=options.max_sequences)
        self.limits = Limits(options.context_length, options.vocab_size, self.scheduler.capacity)
        longest = min(options.context_length, self.scheduler.capacity)
        groups = len(executor.cache.groups)
        self._arrays = BatchArrays(
            self.scheduler.max_sequences, batch_tokens, groups, -(-longest // BLOCK_SIZE)
        )
        self._requests: dict[int, Request] = {}
        self._done: list[Output] = []  # ended without a step
        self._pace = Pace()
        self._steps = self._drafted = self._accepted = 0
        # Seconds spent in each part of all steps so far; the worker adds its own part, "send".
        self.phases = dict.fromkeys(("schedule", "pack", "executor", "finish", "send"), 0.0)

    def add(
        self,
        id: int,
        prompt: list[int],
        params: SamplingParams,
        scores: Scores = NO_SCORES,
        salt: bytes = b"",
    ) -> None:
        """Queue a request; raises what `check_request` raises. The client sees to how many there are.

        Requests with different salts share no cached prefix.
        """
        check_request(prompt, params, self.limits, scores)
        request = Request(id, prompt, params, scores, self.limits, salt)
        if request.sequence.tokens and (request.replies or request.scoring):
            self._requests[id] = request
            self.scheduler.add(request.sequence)
        else:
            self._done.append(_last(request, FinishReason.LENGTH))

    def cancel(self, id: int) -> None:
        """Forget a request and free its blocks; unknown ids are ignored."""
        request = self._requests.get(id)
        if request:
            self._remove(request)

    @property
    def has_work(self) -> bool:
        """Whether `step` would give anything."""
        return bool(self._requests or self._done)

    @property
    def occupancy(self) -> Occupancy:
        """How full the engine is."""
        scheduler = self.scheduler
        used = scheduler.tables.used
        return Occupancy(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_used=used,
            blocks_cached=scheduler.tables.cached,
            tokens_held=used * BLOCK_SIZE - scheduler.wasted_tokens(),
            preemptions=scheduler.preemptions,
            steps=self._steps,
            drafted=self._drafted,
            accepted=self._accepted,
        )

    def check(self) -> None:
        """Raise AssertionError unless the books balance; call between steps."""
        self.scheduler.check()
        held = {id(s) for s in (*self.scheduler.running, *self.scheduler.waiting)}
        assert held == {id(request.sequence) for request in self._requests.values()}, "requests and sequences"
        self._arrays.check([r for r in self._requests.values() if r.sequence.tables])

    def step(self) -> Step:
        """Compute one step. An executor's ValueError, in either half, fails this step's requests only."""
        outputs, self._done = self._done, []
        begun = time.perf_counter()
        plan = self._plan()
        for sequence in plan.preempted:
            self._arrays.leave(self._requests[sequence.id])
        if not plan.chunks:
            return Step(self.occupancy, outputs)
        begun = self._spend("schedule", begun)
        chunks = [(self._requests[sequence.id], count) for sequence, count in plan.chunks.items()]
        batch, rows = self._arrays.pack(chunks)
        self._steps += 1
        begun = self._spend("pack", begun)
        try:
            result = self._compute(batch, rows, begun)
        except ValueError as error:
            outputs += [self._fail(request, f"the step failed: {error}") for request, _ in chunks]
            return Step(self.occupancy, outputs)
        begun = time.perf_counter()
        step = self._finish(plan, rows, result, outputs)
        self._spend("finish", begun)
        return step

    def _compute(self, batch: Batch, rows: Rows, begun: float) -> StepResult:
        """Both halves of the executor's step; what only sampling needs is prepared between them."""
        self.executor.submit(batch)
        submitted = self._spend("executor", begun)
        sampling = self._arrays.sampling(rows)
        prepared = self._spend("pack", submitted)
        result = self.executor.collect(sampling)
        seconds = self._spend("executor", prepared) - begun
        self._pace.learn(len(batch.tokens), len(batch.rows), rows.attended, rows.context, seconds)
        return result

    def _plan(self) -> Plan:
        demand = self.scheduler.demand()
        drafts = self._guess(demand) if self.options.drafts and demand.decoding else 0
        return self.scheduler.schedule(self._pace.reading(demand), drafts)

    def _guess(self, demand: Demand) -> int:
        """Draft tokens of those that decode; how many to verify. Those without a guess are searched in turn,
        as a search takes long beside the rest of a step's Python."""
        needed, most = self._pace.draft_chance(demand), self._pace.drafting(demand)
        running, drafts = self.scheduler.running, 0
        every = -(-len(running) // _SEARCHES)
        for turn, sequence in enumerate(running, self._steps):
            request = self._requests[sequence.id]
            if request.guessing or turn % every == 0:
                drafts += request.guess(needed)
        return drafts if most is None else min(drafts, most)

    def _spend(self, phase: str, begun: float) -> float:
        now = time.perf_counter()
        self.phases[phase] += now - begun
        return now

    def _finish(self, plan: Plan, rows: Rows, result: StepResult, outputs: list[Output]) -> Step:
        """Give the requests what was sampled: one token each of those that decode, then the others'."""
        self.scheduler.advance(plan)
        self._arrays.advance(rows, result.tokens)
        ids, tokens = [], []
        sampled: list[int] = result.tokens.tolist()
        for row, request in enumerate(rows.decoding):
            token = sampled[row]
            finish = request.push(token) if token >= 0 else FinishReason.ERROR
            if finish is None and request.plain:
                ids.append(request.id)
                tokens.append(token)
            else:
                outputs.append(self._output(request, sampled[row : row + 1], row, result, finish))
        for span in rows.scored:
            outputs += self._take_scores(span, sampled, result)
        for span in rows.sampled:
            if span.request.slot >= 0:  # its scores may just have failed it
                outputs.append(self._take_tokens(span, sampled, result))
        return Step(self.occupancy, outputs, ids, tokens)

    def _take_scores(self, span: RowSpan, sampled: list[int], result: StepResult) -> list[Output]:
        """An output if the request ends with these scores."""
        request, wanted = span.request, span.request.scores.prompt_logprobs or 0
        for row in range(span.first, span.first + span.count):
            if sampled[row] < 0:
                return [self._fail(request, _BAD_ROW)]
            request.scored.append(_logprob(result, row, request.prompt[len(request.scored)], wanted))
        if request.replies or len(request.scored) < len(request.prompt):
            return []
        self._remove(request)
        return [_last(request, FinishReason.LENGTH)]

    def _take_tokens(self, span: RowSpan, sampled: list[int], result: StepResult) -> Output:
        """The output of a request that has read its prompt, or has drafts and keeps those that were right."""
        request, drafts = span.request, span.request.sequence.drafts
        taken: list[int] = []
        finish = None
        for token, draft in zip_longest(sampled[span.first : span.first + span.count], drafts):
            if token < 0:
                finish = None if taken else FinishReason.ERROR
                break
            taken.append(token)
            finish = request.push(token)
            if finish or token != draft:
                break
        if drafts and taken:
            self._drafted += len(drafts)
            self._accepted += len(taken) - 1
            self.scheduler.accept(request.sequence, len(taken) - 1)
            self._arrays.trim(request)
        if not finish:
            self._arrays.decode(request)
        return self._output(request, taken, span.first, result, finish)

    def _output(
        self, request: Request, taken: list[int], row: int, result: StepResult, finish: FinishReason | None
    ) -> Output:
        """What a request is told that was given these tokens, whose logits were those from this row."""
        if finish is FinishReason.ERROR:
            return self._fail(request, _BAD_ROW)
        first, wanted = not request.first, request.scores.logprobs
        if first:
            request.first = time.monotonic_ns()
        logprobs = []
        if wanted is not None:
            logprobs = [_logprob(result, at, token, wanted) for at, token in enumerate(taken, row)]
        if finish:
            self._remove(request)
        return Output(
            id=request.id,
            tokens=taken,
            logprobs=logprobs,
            prompt_logprobs=request.scored if first else [],
            finish=finish,
            stats=request.stats() if finish or first else None,
        )

    def _remove(self, request: Request) -> None:
        del self._requests[request.id]
        self._arrays.leave(request)
        self.scheduler.remove(request.sequence)

    def _fail(self, request: Request, message: str) -> Output:
        self._remove(request)
        return Output(id=request.id, finish=FinishReason.ERROR, stats=request.stats(), error=message)


def _last(request: Request, finish: FinishReason) -> Output:
    """The only output of a request that samples nothing."""
    return Output(id=request.id, prompt_logprobs=request.scored, finish=finish, stats=request.stats())


def _logprob(result: StepResult, row: int, token: int, wanted: int) -> TokenLogprob:
    ids = result.top_tokens[row, :wanted].tolist()
    values = result.top_logprobs[row, :wanted].tolist()
    top = tuple(pair for pair in zip(ids, values, strict=True) if pair[0] >= 0)
    return TokenLogprob(token, float(result.logprobs[row]), top)
