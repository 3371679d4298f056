"""Who computes what in the next step, in integers only.

Every sequence has tokens known and tokens computed; a step hands out one budget of tokens until the second
catches the first. Running sequences come first, those that decode before those still reading their prompt;
then new ones are admitted in order of arrival. When blocks run out the latest arrival gives its own back and
is computed again later: the earliest always gets on, so everything ends.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from corral.engine.blocks import BlockPool, extend_digests
from corral.engine.sequence import Sequence


@dataclass(slots=True)
class Plan:
    """One step: for each sequence how many of its next tokens to compute. All their blocks are allocated."""

    chunks: dict[Sequence, int] = field(default_factory=dict)
    preempted: list[Sequence] = field(default_factory=list)
    budget: int = 0  # tokens not handed out


class Scheduler:
    """Holds every unfinished sequence: `running` and `waiting` ones, both in order of arrival."""

    def __init__(self, *, num_blocks: int, block_size: int, batch_tokens: int, max_sequences: int):
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.batch_tokens = batch_tokens
        # With more running than budget the last ones would get no token at all.
        self.max_sequences = min(max_sequences, batch_tokens)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.preemptions = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit when a sequence has all blocks to itself."""
        return self.pool.num_blocks * self.block_size

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. The caller keeps its computed tokens within `capacity`, or it could never end."""
        assert sequence.tokens and len(sequence.tokens) <= self.capacity, "does not fit"
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was cancelled; its blocks are free at once."""
        if sequence.blocks:
            self._drop_blocks(sequence)
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> Plan:
        """Plan one step; empty only when nothing is left to do."""
        plan = Plan(budget=self.batch_tokens)
        reading = []
        for sequence in tuple(self.running):
            if sequence.pending == 1:
                self._grant(sequence, plan)
            else:
                reading.append(sequence)
        for sequence in reading:
            self._grant(sequence, plan)
        if not plan.preempted:
            self._admit(plan)
        return plan

    def advance(self, plan: Plan) -> None:
        """The step was computed: move on, and let others find the blocks that it filled."""
        for sequence, count in plan.chunks.items():
            sequence.computed += count
            full = sequence.computed // self.block_size
            if full > sequence.published:
                extend_digests(sequence.digests, sequence.tokens, full, self.block_size)
                for index in range(sequence.published, full):
                    self.pool.publish(sequence.blocks[index], sequence.digests[index])
                sequence.published = full

    def wasted_tokens(self) -> int:
        """Places in used blocks that hold no token: only the last block of a sequence has any."""
        return sum(len(s.blocks) * self.block_size - s.computed for s in self.running)

    def check(self) -> None:
        """Raise AssertionError unless the books balance; call between steps."""
        self.pool.check(sequence.blocks for sequence in self.running)
        assert len(self.running) <= self.max_sequences, "too many running"
        for sequence in self.running:
            assert sequence.pending >= 1, "a running sequence has nothing to do"
            assert len(sequence.blocks) == self._blocks_for(sequence.computed) > 0, "blocks of a sequence"
        assert all(not s.blocks and not s.computed for s in self.waiting), "a waiting sequence holds blocks"

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _grant(self, sequence: Sequence, plan: Plan) -> None:
        """Give a running sequence its share of the budget, unless it was preempted meanwhile."""
        count = min(sequence.pending, plan.budget)
        if count <= 0 or not sequence.blocks:
            return
        missing = self._blocks_for(sequence.computed + count) - len(sequence.blocks)
        while missing > self.pool.free:
            last = self.running[-1]
            self._preempt(last, plan)
            if last is sequence:
                return
        self._compute(sequence, count, plan)

    def _compute(self, sequence: Sequence, count: int, plan: Plan) -> None:
        for _ in range(self._blocks_for(sequence.computed + count) - len(sequence.blocks)):
            sequence.blocks.append(self.pool.take())
        plan.chunks[sequence] = count
        plan.budget -= count

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        assert len(self.running) > 1, "a sequence alone has every block"
        self.running.pop()
        self._drop_blocks(sequence)
        self.waiting.appendleft(sequence)
        plan.budget += plan.chunks.pop(sequence, 0)
        plan.preempted.append(sequence)
        self.preemptions += 1

    def _drop_blocks(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = 0

    def _admit(self, plan: Plan) -> None:
        promised = -1  # counted when somebody waits
        while self.waiting and plan.budget > 0 and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            if promised < 0:
                promised = sum(self._still_needs(other) for other in self.running)
            hits = self._find_prefix(sequence)
            needed = self._blocks_for(len(sequence.tokens)) - len(hits)
            if needed + self.pool.idle(hits) + promised > self.pool.free:
                return
            self.waiting.popleft()
            self._start(sequence, hits, plan)
            promised += self._still_needs(sequence)

    def _still_needs(self, sequence: Sequence) -> int:
        """Blocks kept back for a running sequence: the rest of its known tokens, and one to grow into."""
        return self._blocks_for(len(sequence.tokens)) - len(sequence.blocks) + 1

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks to start from; never all tokens, as the last one's logits are wanted."""
        if not sequence.sharing:
            return []
        count = (len(sequence.tokens) - 1) // self.block_size
        return self.pool.find(self._digests(sequence, count))

    def _digests(self, sequence: Sequence, count: int) -> Iterator[bytes]:
        for index in range(count):
            extend_digests(sequence.digests, sequence.tokens, index + 1, self.block_size)
            yield sequence.digests[index]

    def _start(self, sequence: Sequence, hits: list[int], plan: Plan) -> None:
        self.pool.share(hits)
        sequence.blocks = list(hits)
        sequence.published = len(hits)
        sequence.computed = len(hits) * self.block_size
        if sequence.cached is None:
            sequence.cached = sequence.computed
        self.running.append(sequence)
        self._compute(sequence, min(sequence.pending, plan.budget), plan)
