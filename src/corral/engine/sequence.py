"""One sequence as the scheduler sees it: tokens known, tokens computed, and the KV blocks that hold them."""


class Sequence:
    """A prompt and its reply so far. `tokens` only grows; `computed` of them have their K and V stored."""

    __slots__ = (
        "cached",
        "computed",
        "deadline",
        "digests",
        "drafts",
        "dropped",
        "id",
        "published",
        "salt",
        "sharing",
        "tables",
        "tokens",
    )

    def __init__(self, id: int, tokens: list[int], *, sharing: bool = True, salt: bytes = b""):
        self.id = id
        self.tokens = tokens
        self.computed = 0
        # For each group of layers: position p lives in tables[group][p // block_size]. Empty while waiting.
        self.tables: list[list[int]] = []
        self.dropped: list[int] = []  # leading entries of each table without a block: nothing sees them now
        self.digests: list[bytes] = []  # of full blocks, as far as they were needed; survive a preemption
        self.sharing = sharing  # may start from the prefix cache
        self.salt = salt  # sequences with different salts share no blocks, whatever their tokens
        self.cached: int | None = None  # tokens taken from the prefix cache at the first admission
        self.published = 0  # leading blocks that others may find, or that came from the cache
        self.drafts: list[int] = []  # guesses at the next tokens; empty between steps
        self.deadline = 0  # on the scheduler's clock: prompts are read in this order

    @property
    def pending(self) -> int:
        """Tokens known but not computed; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def held(self) -> int:
        """Blocks in all its tables."""
        return sum(map(len, self.tables)) - sum(self.dropped)

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.computed}/{len(self.tokens)} in {self.held} blocks)"
