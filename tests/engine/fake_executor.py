"""An executor without a model: the next token is a digest of the sequence, read back through its KV blocks.

A wrong position, block table or shared block therefore gives wrong tokens, as it would with a real model.
"""

import hashlib

import numpy as np

from corral.executors.batch import Batch, StepResult
from corral.types import BLOCK_SIZE

VOCAB = 1000


def next_tokens(tokens, count):
    """What the fake model replies to `tokens`, greedily."""
    reply = []
    for _ in range(count):
        reply.append(_choose(tokens + reply, 0, 0)[0])
    return reply


def _choose(tokens, temperature, seed):
    text = np.array(tokens, np.int32).tobytes()
    if temperature:
        text += int(seed).to_bytes(8, "little")
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return value % VOCAB, -float(np.float32(value % 9973) / np.float32(97))


class FakeExecutor:
    """`fail_token`: a row whose last token is this one comes out bad. `error`: what the next step raises."""

    def __init__(self, num_blocks=64, max_tokens=64, fail_token=-1):
        self.num_blocks, self.max_tokens, self.fail_token = num_blocks, max_tokens, fail_token
        self.kv = np.full(num_blocks * BLOCK_SIZE, -1, np.int32)
        self.batches: list[Batch] = []
        self.keep = False
        self.error: Exception | None = None

    def step(self, batch):
        if self.error:
            error, self.error = self.error, None
            raise error
        if self.keep:
            self.batches.append(batch)
        assert 0 < len(batch.tokens) <= self.max_tokens
        owner = np.repeat(np.arange(len(batch.starts) - 1), np.diff(batch.starts))
        where = batch.blocks[owner, batch.positions // BLOCK_SIZE] * BLOCK_SIZE + batch.positions % BLOCK_SIZE
        assert (where >= 0).all() and len(set(where.tolist())) == len(where), "two tokens in one place"
        self.kv[where] = batch.tokens
        s = batch.sampling
        tokens, logprobs = np.zeros(len(batch.rows), np.int32), np.zeros(len(batch.rows), np.float32)
        top = np.full((len(batch.rows), 20), -1, np.int32)
        for r, row in enumerate(batch.rows):
            known = self._known(batch.blocks[owner[row]], batch.positions[row])
            token, logprob = _choose(known, s.temperature[r], s.seeds[r])
            banned = s.bias_ids[s.bias_starts[r] : s.bias_starts[r + 1]]
            while token in banned:
                token = (token + 1) % VOCAB
            tokens[r] = token if s.target[r] < 0 else s.target[r]
            if known[-1] == self.fail_token:
                tokens[r] = -1
            if s.logprobs[r] >= 0:
                logprobs[r] = logprob
                top[r, : s.logprobs[r]] = (token + np.arange(s.logprobs[r])) % VOCAB
        return StepResult(tokens, logprobs, top, np.where(top >= 0, np.float32(-1), np.float32(0)))

    def _known(self, blocks, position):
        kept = self.kv.reshape(-1, BLOCK_SIZE)[blocks[: position // BLOCK_SIZE + 1]].reshape(-1)
        return kept[: position + 1].tolist()

    def buffer(self, index):
        raise NotImplementedError

    def close(self):
        pass


class NullExecutor:
    """Answers token 7 at once: what is left is the engine's own time."""

    def __init__(self, num_blocks=4096, max_tokens=256):
        self.num_blocks, self.max_tokens = num_blocks, max_tokens

    def step(self, batch):
        rows = len(batch.rows)
        top = np.full((rows, 20), -1, np.int32)
        return StepResult(
            np.full(rows, 7, np.int32), np.zeros(rows, np.float32), top, np.zeros_like(top, np.float32)
        )

    def buffer(self, index):
        raise NotImplementedError

    def close(self):
        pass
