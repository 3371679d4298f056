"""The reference executor: numpy, float32, slow and obvious: the definition of correct for every other one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral.executors.batch import F32, I32, Batch, SamplingRows, StepResult, blocks_of_pools
from corral.executors.reference_sampling import sample
from corral.models.cache import ELEMENT_BYTES
from corral.models.ops import (
    Activation,
    Add,
    AllReduce,
    Attention,
    Embed,
    Experts,
    Gated,
    Head,
    Input,
    KVWrite,
    LayerNorm,
    Linear,
    Op,
    Output,
    RmsNorm,
    Rope,
    RopeStyle,
    Route,
    Select,
)
from corral.models.program import Program
from corral.types import BLOCK_SIZE, CPU, DeviceMemory

AllReduceRows = Callable[[F32], F32]


class ReferenceExecutor:
    """Runs a Program for a Batch, op by op. KV is float32; weights are dequantised once, when first used."""

    def __init__(
        self,
        program: Program,
        *,
        num_blocks: int | Sequence[int],
        max_tokens: int,
        all_reduce: AllReduceRows | None = None,
    ):
        """`all_reduce` gives, in a new array, the sum of the rows that all ranks call it with."""
        self.all_reduce = all_reduce
        self.program, self.max_tokens = program, max_tokens
        self.cache = program.cache
        self.num_blocks = blocks_of_pools(self.cache, num_blocks)
        self.group_of = {layer: i for i, group in enumerate(self.cache.groups) for layer in group.layers}
        self.keys, self.values = _kv_arrays(program, self.num_blocks)
        kv_bytes = self.cache.bytes_of(self.num_blocks) * 4 // ELEMENT_BYTES
        self.memory = {CPU: replace(self.memory_needed(program, max_tokens)[CPU], kv=kv_bytes)}
        self.buffers: list[F32] = []
        self.logits: F32 = np.zeros((0, program.vocab_size), np.float32)
        self.vectors: F32 = np.zeros((0, 0), np.float32)
        self._weights: dict[tuple[int, int], F32] = {}

    @staticmethod
    def memory_needed(program: Program, max_tokens: int) -> dict[str, DeviceMemory]:
        """What a ReferenceExecutor of this Program will take, without its KV cache: float32 throughout."""
        weights = sum(math.prod(tensor.shape) * tensor.experts for tensor in program.weights)
        rows = sum(buffer.width for buffer in program.buffers) * max_tokens
        return {CPU: DeviceMemory(4 * weights, 4 * rows)}

    def submit(self, batch: Batch) -> None:
        """Run every op."""
        if len(batch.tokens) > self.max_tokens:
            raise ValueError(f"a step of {len(batch.tokens)} tokens; this executor takes {self.max_tokens}")
        self.buffers = [np.zeros((0, buffer.width), np.float32) for buffer in self.program.buffers]
        with np.errstate(over="ignore", invalid="ignore"):  # rows that are not numbers fail in sampling
            for op in self.program.ops:
                RUN[type(op)](self, op, batch)

    def collect(self, sampling: SamplingRows) -> StepResult:
        """Sample or score each wanted row, or give its vectors."""
        if self.program.output_width:
            return StepResult.of_vectors(self.vectors)
        return sample(self.logits, sampling)

    def buffer(self, index: int) -> NDArray[Any]:
        """A copy of a buffer as the last step left it."""
        return self.rows(index).copy()

    def rows(self, index: int) -> F32:
        """A buffer's rows [N or R, width]; those of a view are columns of its base's."""
        buffer = self.program.buffers[index]
        if buffer.base is None:
            return self.buffers[index]
        return self.buffers[buffer.base][:, buffer.start : buffer.start + buffer.width]

    def write(self, index: int, rows: F32) -> None:
        """Put an op's result, which nothing else holds, into a buffer."""
        if self.program.buffers[index].base is None:
            self.buffers[index] = rows
        else:
            self.rows(index)[:] = rows

    def close(self) -> None:
        """Forget weights and cache."""
        self._weights.clear()
        self.keys, self.values, self.buffers = {}, {}, []

    def weight(self, index: int) -> F32:
        """The dequantised matrix [rows, cols]."""
        return self.expert(index, 0)

    def expert(self, index: int, number: int) -> F32:
        """The dequantised matrix [rows, cols] of one expert."""
        if (index, number) not in self._weights:
            self._weights[index, number] = self.program.weights[index].expert(number).dequantize()
        return self._weights[index, number]


def _kv_arrays(program: Program, num_blocks: Sequence[int]) -> tuple[dict[int, F32], dict[int, F32]]:
    """Keys [blocks, BLOCK_SIZE, K, Dk] and values of each layer: views of its part of a pool's blocks."""
    cache = program.cache
    arrays: tuple[dict[int, F32], dict[int, F32]] = {}, {}
    pools = [
        np.zeros((count, size // ELEMENT_BYTES), np.float32)
        for count, size in zip(num_blocks, cache.block_bytes, strict=True)
    ]
    for group in cache.groups:
        end = 0  # layers of different groups share memory, not blocks
        for number in group.layers:
            layer = program.kv_layers[number]
            for of_layer, size in zip(arrays, (layer.key_size, layer.value_size), strict=True):
                start, end = end, end + BLOCK_SIZE * layer.kv_heads * size
                part = pools[group.pool][:, start:end]
                of_layer[number] = part.reshape(-1, BLOCK_SIZE, layer.kv_heads, size)
    return arrays


def _embed(run: ReferenceExecutor, op: Embed, batch: Batch) -> None:
    run.write(op.out, run.weight(op.weight)[batch.tokens] * np.float32(op.scale))


def _input(run: ReferenceExecutor, op: Input, batch: Batch) -> None:
    if batch.inputs is None:
        raise ValueError("wrong batch: this Program needs inputs")
    run.write(op.out, batch.inputs.copy())


def _rms_norm(run: ReferenceExecutor, op: RmsNorm, batch: Batch) -> None:
    x = run.rows(op.x)
    parts = x.reshape(len(x), op.heads, x.shape[1] // op.heads)
    mean = np.mean(np.square(parts), axis=-1, keepdims=True)
    normed = parts / np.sqrt(mean + np.float32(op.eps)) * run.weight(op.weight)[0]
    run.write(op.out, normed.reshape(x.shape))


def _layer_norm(run: ReferenceExecutor, op: LayerNorm, batch: Batch) -> None:
    x = run.rows(op.x)
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    normed = centred / np.sqrt(variance + np.float32(op.eps))
    run.write(op.out, normed * run.weight(op.weight)[0] + run.weight(op.bias)[0])


def _linear(run: ReferenceExecutor, op: Linear, batch: Batch) -> None:
    x = run.rows(op.x)
    for weight, out, bias in zip(op.weights, op.outs, op.biases, strict=True):
        product = x @ run.weight(weight).T
        run.write(out, product if bias is None else product + run.weight(bias)[0])


def _rope(run: ReferenceExecutor, op: Rope, batch: Batch) -> None:
    x = run.rows(op.x)
    heads = x.reshape(len(x), op.heads, x.shape[1] // op.heads).copy()
    count = len(op.frequencies)
    angle = batch.positions[_rows_of(run, op.x, batch), None, None] * np.array(
        op.frequencies
    )  # [N or R, 1, P]
    cos = (np.cos(angle) * op.magnitude).astype(np.float32)
    sin = (np.sin(angle) * op.magnitude).astype(np.float32)
    half = op.style is RopeStyle.HALF
    first = np.arange(count) * (1 if half else 2)
    second = first + (count if half else 1)
    a, b = heads[..., first], heads[..., second]
    heads[..., first], heads[..., second] = a * cos - b * sin, a * sin + b * cos
    run.write(op.out, heads.reshape(x.shape))


def _kv_write(run: ReferenceExecutor, op: KVWrite, batch: Batch) -> None:
    keys, values = run.keys[op.layer], run.values[op.layer]
    tables = batch.tables_of(run.group_of[op.layer])
    block = tables[_sequence_of_rows(batch), batch.positions // BLOCK_SIZE]
    slot = batch.positions % BLOCK_SIZE
    keys[block, slot] = run.rows(op.k).reshape(-1, *keys.shape[2:])
    values[block, slot] = run.rows(op.v).reshape(-1, *values.shape[2:])


def _attention(run: ReferenceExecutor, op: Attention, batch: Batch) -> None:
    q, rows = run.rows(op.q), _rows_of(run, op.q, batch)
    owner = _sequence_of_rows(batch)[rows]
    out = np.empty((len(q), op.heads * run.program.kv_layers[op.layer].value_size), np.float32)
    for sequence, blocks in enumerate(batch.tables_of(run.group_of[op.layer])):
        own = owner == sequence
        if own.any():
            out[own] = _attend(run, op, q[own], batch.positions[rows[own]], blocks)
    run.write(op.out, out)


def _attend(run: ReferenceExecutor, op: Attention, q: F32, positions: I32, blocks: I32) -> F32:
    """One sequence: q [N, H * Dk] over the positions that any of its rows sees gives [N, H * Dv]."""
    layer = run.program.kv_layers[op.layer]
    first = 0 if layer.window is None else max(0, int(positions.min()) + 1 - layer.window) // BLOCK_SIZE
    length = int(positions.max()) + 1
    used = blocks[first : -(-length // BLOCK_SIZE)]
    length -= first * BLOCK_SIZE
    keys = run.keys[op.layer][used].reshape(-1, layer.kv_heads, layer.key_size)[:length]
    values = run.values[op.layer][used].reshape(-1, layer.kv_heads, layer.value_size)[:length]
    distance = positions[:, None] - np.arange(length) - first * BLOCK_SIZE  # [N, length]
    seen = distance >= 0
    if layer.window is not None:
        seen &= distance < layer.window
    grouped = q.reshape(len(q), layer.kv_heads, op.heads // layer.kv_heads, layer.key_size)
    scores = np.einsum("nkgd,lkd->kgnl", grouped, keys, optimize=True) * np.float32(op.scale)
    scores = _capped(scores, op.softcap)
    scores = np.where(seen, scores, np.float32(-math.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out: F32 = np.einsum("kgnl,lkd->nkgd", weights, values, optimize=True).reshape(len(q), -1)
    return out


def _capped(x: F32, cap: float) -> F32:
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x


def _add(run: ReferenceExecutor, op: Add, batch: Batch) -> None:
    run.write(op.out, run.rows(op.x) + run.rows(op.y))


def _gated(run: ReferenceExecutor, op: Gated, batch: Batch) -> None:
    run.write(op.out, ACTIVATE[op.activation](run.rows(op.gate)) * run.rows(op.up))


def _silu(x: F32) -> F32:
    out: F32 = x * (1 + np.tanh(x / 2)) / 2  # x * sigmoid(x), without overflow
    return out


def _gelu_tanh(x: F32) -> F32:
    out: F32 = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2
    return out


def _all_reduce(run: ReferenceExecutor, op: AllReduce, batch: Batch) -> None:
    if run.all_reduce is None:
        raise ValueError("wrong program: a part of a sharded model, and no other ranks")
    run.write(op.out, run.all_reduce(run.rows(op.x)))


def _route(run: ReferenceExecutor, op: Route, batch: Batch) -> None:
    logits, count = run.rows(op.x), run.program.buffers[op.chosen].width
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    own = np.take_along_axis(logits, chosen, axis=1)
    largest = logits.max(axis=1, keepdims=True)
    total = np.exp((own if op.renormalise else logits) - largest).sum(axis=1, keepdims=True)
    run.write(op.chosen, chosen.astype(np.float32))
    run.write(op.weights, np.exp(own - largest) / total)


def _experts(run: ReferenceExecutor, op: Experts, batch: Batch) -> None:
    x, chosen, weights = run.rows(op.x), run.rows(op.chosen), run.rows(op.weights)
    out = np.zeros_like(x)
    for expert in range(run.program.weights[op.gate].experts):
        rows, ranks = np.nonzero(chosen == expert + op.first)
        gate, up, down = (run.expert(weight, expert) for weight in (op.gate, op.up, op.down))
        hidden = ACTIVATE[op.activation](x[rows] @ gate.T) * (x[rows] @ up.T)
        out[rows] += weights[rows, ranks, None] * (hidden @ down.T)
    run.write(op.out, out)


def _select(run: ReferenceExecutor, op: Select, batch: Batch) -> None:
    run.write(op.out, run.rows(op.x)[batch.rows])


def _head(run: ReferenceExecutor, op: Head, batch: Batch) -> None:
    run.logits = _capped(run.rows(op.x) @ run.weight(op.weight).T, op.softcap)


def _output(run: ReferenceExecutor, op: Output, batch: Batch) -> None:
    run.vectors = run.rows(op.x).copy()


def _rows_of(run: ReferenceExecutor, buffer: int, batch: Batch) -> I32:
    """Which of the batch's rows a buffer has."""
    everyone = np.arange(len(batch.tokens), dtype=np.int32)
    return batch.rows if run.program.buffers[buffer].selected else everyone


def _sequence_of_rows(batch: Batch) -> NDArray[Any]:
    """Which sequence each of the N rows belongs to."""
    return np.repeat(np.arange(len(batch.starts) - 1), np.diff(batch.starts))


ACTIVATE: Mapping[Activation, Callable[[F32], F32]] = {
    Activation.SILU: _silu,
    Activation.GELU_TANH: _gelu_tanh,
}

RUN: Mapping[type[Op], Callable[[ReferenceExecutor, Any, Batch], None]] = {
    Embed: _embed,
    Input: _input,
    RmsNorm: _rms_norm,
    LayerNorm: _layer_norm,
    Linear: _linear,
    Rope: _rope,
    KVWrite: _kv_write,
    Attention: _attention,
    Add: _add,
    AllReduce: _all_reduce,
    Gated: _gated,
    Route: _route,
    Experts: _experts,
    Select: _select,
    Head: _head,
    Output: _output,
}
