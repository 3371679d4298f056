"""The engine: takes requests, runs steps, gives outputs. One thread, no I/O."""

import time
from dataclasses import dataclass

from corral.engine.admission import Limits, check_request
from corral.engine.arrays import BatchArrays, Rows, Scored
from corral.engine.pace import Pace
from corral.engine.protocol import Load, Output
from corral.engine.request import Request
from corral.engine.scheduler import Plan, Scheduler
from corral.engine.tables import BlockTables
from corral.executors.batch import Executor, StepResult
from corral.types import BLOCK_SIZE, NO_SCORES, FinishReason, SamplingParams, Scores, TokenLogprob

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
        tables = BlockTables(executor.num_blocks, BLOCK_SIZE, executor.kv_windows, batch_tokens)
        self.scheduler = Scheduler(tables, batch_tokens=batch_tokens, max_sequences=options.max_sequences)
        self.limits = Limits(options.context_length, options.vocab_size, self.scheduler.capacity)
        longest = min(options.context_length, self.scheduler.capacity)
        groups = len(executor.kv_windows)
        self._arrays = BatchArrays(self.scheduler.max_sequences, groups, -(-longest // BLOCK_SIZE))
        self._requests: dict[int, Request] = {}
        self._done: list[Output] = []  # ended without a step
        self._pace = Pace()
        self._steps = self._drafted = self._accepted = 0
        # Seconds spent in each part of all steps so far; the worker adds its own part, "send".
        self.phases = dict.fromkeys(("schedule", "pack", "executor", "finish", "send"), 0.0)

    def add(self, id: int, prompt: list[int], params: SamplingParams, scores: Scores = NO_SCORES) -> None:
        """Queue a request; raises what `check_request` raises. The client sees to how many there are."""
        check_request(prompt, params, self.limits, scores)
        request = Request(id, prompt, params, scores, self.limits)
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
    def load(self) -> Load:
        """How full the engine is."""
        scheduler = self.scheduler
        used = scheduler.pool.used
        return Load(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_used=used,
            blocks_cached=scheduler.pool.cached,
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

    def step(self) -> list[Output]:
        """Compute one step and give its outputs. An executor's ValueError fails this step's requests only."""
        outputs, self._done = self._done, []
        begun = time.perf_counter()
        plan = self._plan()
        for sequence in plan.preempted:
            self._arrays.leave(self._requests[sequence.id])
        if not plan.chunks:
            return outputs
        requests = [self._start(sequence.id) for sequence in plan.chunks]
        begun = self._spend("schedule", begun)
        batch, rows = self._arrays.batch(requests, list(plan.chunks.values()))
        self._steps += 1
        begun = self._spend("pack", begun)
        try:
            result = self.executor.step(batch)
        except ValueError as error:
            return outputs + [self._fail(request, f"the step failed: {error}") for request in requests]
        computed = self._spend("executor", begun)
        self._pace.learn(len(batch.tokens), len(batch.rows), rows.looks, rows.fetched, computed - begun)
        outputs += self._finish_step(plan, rows, result)
        self._spend("finish", computed)
        return outputs

    def _plan(self) -> Plan:
        crowd, drafts = self.scheduler.crowd(), 0
        if self.options.drafts and crowd.decoding:
            needed, most = self._pace.draft_chance(crowd), self._pace.drafting(crowd)
            for request in self._requests.values():
                request.guess(needed)
                drafts += len(request.sequence.drafts)
            drafts = drafts if most is None else min(drafts, most)
        return self.scheduler.schedule(self._pace.reading(crowd), drafts)

    def _spend(self, phase: str, begun: float) -> float:
        now = time.perf_counter()
        self.phases[phase] += now - begun
        return now

    def _start(self, id: int) -> Request:
        request = self._requests[id]
        if request.slot < 0:
            self._arrays.enter(request)
            if not request.started:
                request.started = time.monotonic_ns()
        return request

    def _finish_step(self, plan: Plan, rows: Rows, result: StepResult) -> list[Output]:
        self.scheduler.advance(plan)
        tokens: list[int] = result.tokens.tolist()
        outputs = []
        for scored in rows.scored:
            output = self._take_scores(scored, tokens, result)
            if output:
                outputs.append(output)
        now = time.monotonic_ns()
        for request, row in zip(rows.sampled, rows.firsts, strict=True):
            if request.slot >= 0:  # its scores may just have failed it
                outputs.append(self._take_tokens(request, tokens, row, result, now))
        return outputs

    def _take_scores(self, scored: Scored, tokens: list[int], result: StepResult) -> Output | None:
        request, wanted = scored.request, scored.request.scores.prompt_logprobs or 0
        for row in range(scored.first, scored.first + scored.count):
            if tokens[row] < 0:
                return self._fail(request, _BAD_ROW)
            request.scored.append(_logprob(result, row, request.prompt[len(request.scored)], wanted))
        if request.replies or len(request.scored) < len(request.prompt):
            return None
        self._remove(request)
        return _last(request, FinishReason.LENGTH)

    def _take_tokens(
        self, request: Request, sampled: list[int], row: int, result: StepResult, now: int
    ) -> Output:
        drafts = request.sequence.drafts
        taken: list[int] = []
        finish = None
        while finish is None and sampled[row + len(taken)] >= 0:
            taken.append(sampled[row + len(taken)])
            finish = request.push(taken[-1], now)
            if len(taken) > len(drafts) or taken[-1] != drafts[len(taken) - 1]:
                break
        if not taken:
            return self._fail(request, _BAD_ROW)
        if drafts:
            self._drafted += len(drafts)
            self._accepted += len(taken) - 1
            self.scheduler.settle(request.sequence, len(taken) - 1)
            self._arrays.settle(request)
        wanted = request.scores.logprobs
        logprobs = []
        if wanted is not None:
            logprobs = [_logprob(result, at, token, wanted) for at, token in enumerate(taken, row)]
        if finish:
            self._remove(request)
        first = request.first == now
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
