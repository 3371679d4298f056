"""An executor without a model: the next token is a digest of the sequence, read back through its KV blocks.

A wrong position, block table or shared block therefore gives wrong tokens, as it would with a real model.
"""

import hashlib
from copy import copy
from dataclasses import replace

import numpy as np
from caches import cache_of

from batches import SampledBatch
from corral.executors.batch import Batch, StepResult, blocks_of_pools
from corral.executors.reference_sampling import mix
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


def _allowed(masks, r, token):
    return masks is None or masks.rows[r] < 0 or masks.bits[masks.rows[r], token // 32] >> token % 32 & 1


class FakeExecutor:
    """`fail_token`: a row whose last token is this one comes out bad. `error`: what the next step raises.

    Every group of layers must read the same tokens through its own tables, as far back as it sees. With
    `memory` only so many last tokens matter, and few tokens are said: replies repeat themselves.
    """

    def __init__(
        self, num_blocks=64, max_tokens=64, fail_token=-1, kv_windows=(None,), memory=None, pools=()
    ):
        self.memory = memory
        self.max_tokens, self.fail_token = max_tokens, fail_token
        self.cache = cache_of(kv_windows, pools=pools)
        self.num_blocks = blocks_of_pools(self.cache, num_blocks)
        self.kv = [np.full(count * BLOCK_SIZE, -1, np.int32) for count in self.num_blocks]
        self.batches: list[SampledBatch] = []
        self.keep = False
        self.error: Exception | None = None
        self.late = False  # the error comes from the second half

    def submit(self, batch):
        if not self.late:
            self._raise()
        assert 0 < len(batch.tokens) <= self.max_tokens
        owner = np.repeat(np.arange(len(batch.starts) - 1), np.diff(batch.starts))
        groups = self.cache.groups
        assert len(batch.tables) == len(groups) and len(set(batch.slots.tolist())) == len(batch.slots)
        blocks = batch.tables[:, batch.slots[owner], batch.positions // BLOCK_SIZE]
        places = blocks * BLOCK_SIZE + batch.positions % BLOCK_SIZE
        taken = {(group.pool, at) for group, row in zip(groups, places.tolist(), strict=True) for at in row}
        assert (places >= 0).all() and len(taken) == places.size, "two tokens in one place"
        for group, row in zip(groups, places, strict=True):
            self.kv[group.pool][row] = batch.tokens
        self.batch, self.owner = batch, owner

    def _raise(self):
        if self.error:
            error, self.error = self.error, None
            raise error

    def collect(self, sampling):
        self._raise()
        batch, owner, s = self.batch, self.owner, sampling
        if self.keep:
            fields = {name: copy(getattr(batch, name)) for name in Batch.__dataclass_fields__}
            self.batches.append(SampledBatch(**fields, sampling=replace(s, columns=s.columns.copy())))
        tokens, logprobs = np.zeros(len(batch.rows), np.int32), np.zeros(len(batch.rows), np.float32)
        top = np.full((len(batch.rows), 20), -1, np.int32)
        for r, at in enumerate(batch.rows):
            known = self._known(batch.tables[:, batch.slots[owner[at]]], batch.positions[at])
            if self.memory is not None:
                known = known[-self.memory :]
            row = s.columns[r]
            token, logprob = _choose(known, row["temperature"], mix(int(row["seed"]), int(row["index"])))
            if self.memory is not None:
                token %= 7
            while not _allowed(s.masks, r, token):
                token = (token + 1) % VOCAB
            tokens[r] = token if row["target"] < 0 else row["target"]
            if known[-1] == self.fail_token:
                tokens[r] = -1
            if row["logprobs"] >= 0:
                logprobs[r] = logprob
                top[r, : row["logprobs"]] = (token + np.arange(row["logprobs"])) % VOCAB
        return StepResult(tokens, logprobs, top, np.where(top >= 0, np.float32(-1), np.float32(0)))

    def _known(self, tables, position):
        seen = []
        for group, table in zip(self.cache.groups, tables, strict=True):
            at = np.arange(max(0, position + 1 - (group.window or position + 1)), position + 1)
            blocks = table[at // BLOCK_SIZE]
            assert (blocks >= 0).all(), "a block that is seen is not there"
            seen.append(self.kv[group.pool][blocks * BLOCK_SIZE + at % BLOCK_SIZE].tolist())
        known = max(seen, key=len)
        assert all(tokens == known[len(known) - len(tokens) :] for tokens in seen), "groups read other tokens"
        return known

    def buffer(self, index):
        raise NotImplementedError

    def close(self):
        pass


def run(engine, requests):
    """Outputs by request id, after adding all and stepping to the end."""
    for id, request in requests.items():  # prompt, parameters, and what is to be scored, if anything
        engine.add(id, *request)
    outputs = {id: [] for id in requests}
    while engine.has_work:
        for output in engine.step():
            outputs[output.id].append(output)
        engine.check()
    return outputs
