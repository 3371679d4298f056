"""One sequence as the scheduler sees it: tokens known, tokens computed, and the KV blocks that hold them."""


class Sequence:
    """A prompt and its reply so far. `tokens` only grows; `computed` of them have their K and V stored."""

    __slots__ = ("blocks", "cached", "computed", "digests", "id", "published", "sharing", "tokens", "turn")

    def __init__(self, id: int, tokens: list[int], *, sharing: bool = True):
        self.id = id
        self.tokens = tokens
        self.computed = 0
        self.blocks: list[int] = []  # position p lives in blocks[p // block_size]
        self.digests: list[bytes] = []  # of full blocks, as far as they were needed; survive a preemption
        self.sharing = sharing  # may start from the prefix cache
        self.cached: int | None = None  # tokens taken from the prefix cache at the first admission
        self.published = 0  # leading blocks that others may find, or that came from the cache

        self.turn = 0  # the scheduler's order among those that read

    @property
    def pending(self) -> int:
        """Tokens known but not computed; 1 while decoding."""
        return len(self.tokens) - self.computed

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.computed}/{len(self.tokens)} in {len(self.blocks)} blocks)"
