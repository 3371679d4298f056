"""Who computes what in the next step, in integers only.

Every sequence has tokens known and tokens computed; a step hands out one budget of tokens until the second
number has caught up with the first. Sequences that decode come first, then those that read their prompt, by
deadline: the clock counts tokens of prompts read, and a prompt's deadline is its arrival and its own length
later. So equal prompts are read in order of arrival, a short one overtakes a long one, and a long one waits
for no more newcomers' tokens than its own number. When blocks run out, the sequence admitted last is
preempted: it gives its blocks back and is computed again later. The first always gets on, so everything ends.
"""

from bisect import insort_left, insort_right
from dataclasses import dataclass, field
from operator import attrgetter

from corral.engine.sequence import Sequence
from corral.engine.tables import BlockTables, Tables

_deadline = attrgetter("deadline")


@dataclass(slots=True)
class Plan:
    """One step: for each sequence how many of its next tokens to compute. All their blocks are allocated."""

    chunks: dict[Sequence, int] = field(default_factory=dict)
    preempted: list[Sequence] = field(default_factory=list)
    budget: int = 0  # tokens not handed out


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits for the next step."""

    decoding: int  # sequences that decode
    context: int  # tokens that these have computed, all together
    prefilling: int  # sequences that read their prompt, or could begin to
    prefilled: int  # tokens that the first of these has computed


class Scheduler:
    """Holds every unfinished sequence: `running` ones in order of admission, `waiting` ones by deadline."""

    def __init__(self, tables: BlockTables, *, batch_tokens: int, max_sequences: int):
        self.tables = tables
        self.batch_tokens = batch_tokens
        # With more running than budget the last ones would get no token at all.
        self.max_sequences = min(max_sequences, batch_tokens)
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self._clock = 0  # tokens of prompts read so far

    @property
    def capacity(self) -> int:
        """Tokens that fit when a sequence has all blocks to itself."""
        return self.tables.capacity

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. The caller keeps its computed tokens within `capacity`, or it could never end."""
        assert sequence.tokens and len(sequence.tokens) <= self.capacity, "does not fit"
        cached = len(self.tables.find(sequence)[0]) * self.tables.block_size
        sequence.deadline = self._clock + len(sequence.tokens) - cached
        insort_right(self.waiting, sequence, key=_deadline)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was cancelled; its blocks are free at once."""
        if sequence.tables:
            self.tables.release(sequence)
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def demand(self) -> Demand:
        """How many sequences decode and read, and how far they are."""
        decoding = context = 0
        readers = []
        for sequence in self.running:
            if len(sequence.tokens) - sequence.computed == 1:
                decoding += 1
                context += sequence.computed
            else:
                readers.append(sequence)
        return Demand(
            decoding=decoding,
            context=context,
            prefilling=len(readers) + min(self.max_sequences - len(self.running), len(self.waiting)),
            prefilled=min(readers, key=_deadline).computed if readers else 0,
        )

    def schedule(self, reading: int | None = None, drafts: int = 0) -> Plan:
        """Plan one step; empty only when nothing is left to do.

        Where some decode, those that read get at most `reading` tokens together (at least one). At most
        `drafts` are verified, shared alike among the sequences that have so many.
        """
        plan = Plan(budget=self.batch_tokens)
        readers = []
        for sequence in tuple(self.running):
            if len(sequence.tokens) - sequence.computed != 1:
                readers.append(sequence)
            elif (
                sequence.computed % self.tables.block_size
            ):  # its block is there: the step of nearly everybody
                plan.chunks[sequence] = 1
                plan.budget -= 1
            else:
                self._grant(sequence, plan)
        kept = 0
        if plan.chunks and reading is not None:
            kept = max(0, plan.budget - max(1, reading))
        plan.budget -= kept
        self._read_prompts(readers, plan)
        plan.budget += kept
        drafted = sorted((s for s in self.running if s.drafts), key=lambda s: len(s.drafts))
        for others, sequence in zip(reversed(range(len(drafted))), drafted, strict=True):
            self._grant_drafts(sequence, min(plan.budget, drafts // (others + 1)), plan)
            drafts -= len(sequence.drafts)
        return plan

    def advance(self, plan: Plan) -> None:
        """The step was computed: count all tokens as computed but drafts, which `accept` decides about."""
        size = self.tables.block_size
        for sequence, count in plan.chunks.items():
            sequence.computed += count - len(sequence.drafts) if sequence.drafts else count
            if sequence.computed // size > sequence.published:
                self.tables.advance(sequence)

    def accept(self, sequence: Sequence, right: int) -> None:
        """So many of its drafts came true and are among its tokens now; the others' blocks are given back."""
        sequence.drafts = []
        sequence.computed += right
        self.tables.advance(sequence)
        self.tables.trim(sequence)

    def wasted_tokens(self) -> int:
        """Places in used blocks that hold no token: between steps, those behind a sequence's last one."""
        size = self.tables.block_size
        return sum([len(s.tables) * (-s.computed % size) for s in self.running])

    def check(self) -> None:
        """Raise AssertionError unless the books balance; call between steps."""
        self.tables.check(self.running)
        assert len(self.running) <= self.max_sequences, "too many running"
        for sequence in self.running:
            assert sequence.pending >= 1, "a running sequence has nothing to do"
            assert not sequence.drafts, "drafts are undecided"
        assert all(not s.tables and not s.computed for s in self.waiting), "a waiting sequence holds blocks"

    def _grant(self, sequence: Sequence, plan: Plan) -> None:
        """Give a running sequence its share of the budget, unless it was preempted meanwhile."""
        count = min(sequence.pending, plan.budget)
        if count <= 0 or not sequence.tables:
            return
        while not self.tables.fits(sequence, sequence.computed + count):
            last = self.running[-1]
            self._preempt(last, plan)
            if last is sequence:
                return
        self._compute(sequence, count, plan)

    def _compute(self, sequence: Sequence, count: int, plan: Plan) -> None:
        self.tables.extend(sequence, sequence.computed + count)
        plan.budget -= count - plan.chunks.get(sequence, 0)
        plan.chunks[sequence] = count

    def _grant_drafts(self, sequence: Sequence, most: int, plan: Plan) -> None:
        """Verify at most so many drafts, as free blocks allow: they take nothing from anybody."""
        del sequence.drafts[most if plan.chunks.get(sequence) == sequence.pending else 0 :]
        while not self.tables.fits(sequence, len(sequence.tokens) + len(sequence.drafts)):
            sequence.drafts.pop()
        if sequence.drafts:
            self._compute(sequence, sequence.pending + len(sequence.drafts), plan)

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        assert len(self.running) > 1, "a sequence alone has every block"
        self.running.pop()
        self.tables.release(sequence)
        sequence.drafts = []
        insort_left(self.waiting, sequence, key=_deadline)
        plan.budget += plan.chunks.pop(sequence, 0)
        plan.preempted.append(sequence)
        self.preemptions += 1

    def _read_prompts(self, readers: list[Sequence], plan: Plan) -> None:
        """Hand what is left of the budget to those that read and those that can be admitted, by deadline."""
        readers.sort(key=_deadline, reverse=True)
        admits = not plan.preempted
        while plan.budget > 0 and (readers or (admits and self.waiting)):
            left = plan.budget
            if admits and self.waiting and not (readers and readers[-1].deadline <= self.waiting[0].deadline):
                admits = self._admit(plan)
            else:
                self._grant(readers.pop(), plan)
                admits = admits and not plan.preempted
            self._clock += max(0, left - plan.budget)

    def _admit(self, plan: Plan) -> bool:
        """Start the sequence that has waited longest by deadline, if there are a slot and memory for it."""
        if len(self.running) >= self.max_sequences:
            return False
        sequence = self.waiting[0]
        prefix = self.tables.find(sequence)
        if not self.tables.can_admit(sequence, prefix, self.running):
            return False
        del self.waiting[0]
        self._start(sequence, prefix, plan)
        return True

    def _start(self, sequence: Sequence, prefix: Tables, plan: Plan) -> None:
        self.tables.start(sequence, prefix)
        if sequence.cached is None:
            sequence.cached = sequence.computed
        self.running.append(sequence)
        self._compute(sequence, min(sequence.pending, plan.budget), plan)
