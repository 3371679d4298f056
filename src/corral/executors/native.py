"""The native executor: packs a Program's weights once, then runs each step in one C++ call.

The call is made by `collect`: the threads that compute are those that would prepare the sampling meanwhile.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral import _native
from corral.executors.batch import Batch, SamplingRows, StepResult, blocks_of_pools
from corral.executors.packing import pack, packed_bytes
from corral.models.ops import Role, numbers_in
from corral.models.program import Program
from corral.types import BLOCK_SIZE, CPU, MAX_TOP_LOGPROBS, DeviceMemory

if _native.KV_BLOCK != BLOCK_SIZE:
    raise ImportError(
        f"corral._native keeps {_native.KV_BLOCK} positions in a KV block, and this corral {BLOCK_SIZE}: "
        "it was built from other sources; build it again"
    )

OnPacked = Callable[[str], None]


class NativeExecutor:
    """Runs a Program on the CPU. `on_packed(name)` is told when a tensor's bytes are needed no more."""

    def __init__(  # noqa: PLR0913 - one place builds it, by name
        self,
        program: Program,
        *,
        num_blocks: int | Sequence[int],
        max_tokens: int,
        max_sequences: int,
        threads: int,
        isa: str = "auto",
        on_packed: OnPacked | None = None,
    ):
        self.cache, self.max_tokens = program.cache, max_tokens
        self.num_blocks = blocks_of_pools(self.cache, num_blocks)
        self._output_width = program.output_width
        self._program: _native.Program | None = _native.Program(
            program.vocab_size, max_tokens, max_sequences, list(self.num_blocks), threads, isa
        )
        self.isa = self._program.isa  # the kernels in use
        for buffer in program.buffers:
            if buffer.base is None:
                self._program.add_buffer(buffer.width, buffer.selected)
            else:
                self._program.add_view(buffer.base, buffer.start, buffer.width)
        _add_kv_layers(self._program, program)
        weight_bytes = _add_weights(self._program, program, on_packed)
        for op in program.ops:
            self._program.add(op)
        self._program.finish()
        self._batch: Batch
        kv_bytes = self.cache.bytes_of(self.num_blocks)
        self.memory = {CPU: DeviceMemory(weight_bytes, self._program.buffer_bytes, kv_bytes)}

    @staticmethod
    def memory_needed(program: Program, max_tokens: int) -> dict[str, DeviceMemory]:
        """What a NativeExecutor of this Program will take, without its KV cache."""
        vectors = _vectors_of(program)
        floats = sum(program.weights[index].shape[1] for index in vectors)
        matrices = {id(tensor): tensor for i, tensor in enumerate(program.weights) if i not in vectors}
        widths = [buffer.width for buffer in program.buffers if buffer.base is None]
        row = 4 * sum(widths) + 3 * max(widths, default=0)  # the widest one is there quantised as well
        return {CPU: DeviceMemory(4 * floats + packed_bytes(matrices.values()), max_tokens * row)}

    def submit(self, batch: Batch) -> None:
        """Keep the batch for `collect`."""
        self._batch = batch

    def collect(self, sampling: SamplingRows) -> StepResult:
        """Run the whole step without the GIL; ValueError if the batch or its sampling do not fit."""
        batch = self._batch
        rows = len(batch.rows)
        if self._output_width:
            result = StepResult.of_vectors(np.empty((rows, self._output_width), np.float32))
        else:
            result = StepResult(
                tokens=np.empty(rows, np.int32),
                logprobs=np.empty(rows, np.float32),
                top_tokens=np.empty((rows, MAX_TOP_LOGPROBS), np.int32),
                top_logprobs=np.empty((rows, MAX_TOP_LOGPROBS), np.float32),
            )
        self._open().step(batch, sampling, result)
        return result

    def buffer(self, index: int) -> NDArray[Any]:
        """A copy of a buffer's rows as the last step left them."""
        return self._open().buffer(index)

    def profile(self, on: bool) -> None:
        """Begin anew to measure where steps' time goes, or stop."""
        self._open().profile(on)

    def profile_seconds(self) -> dict[str, float]:
        """Seconds by kind of work since `profile(True)`; together the time of those steps.

        "matmul u4" and so on by the weights' codes, "experts u4" likewise, "attention", "rows" (norms, rope,
        routing, quantising, adding), "head" (logits and sampling), and "waiting" for the other threads.
        """
        return self._open().profile_seconds()

    def close(self) -> None:
        """Give back threads and memory."""
        self._program = None

    def _open(self) -> _native.Program:
        if self._program is None:
            raise RuntimeError("the executor is closed")
        return self._program


def _add_kv_layers(native: _native.Program, program: Program) -> None:
    group_of = {}
    for group in program.cache.groups:
        number = native.add_kv_group(group.window or 0, group.pool)
        group_of.update(dict.fromkeys(group.layers, number))
    for index, layer in enumerate(program.kv_layers):
        native.add_kv_layer(layer.kv_heads, layer.key_size, layer.value_size, group_of[index])


def _add_weights(native: _native.Program, program: Program, on_packed: OnPacked | None) -> int:
    """Hand over every weight, packing a tensor that two ops share once. Returns the bytes that they take."""
    vectors = _vectors_of(program)
    packed: dict[int, _native.Matrix] = {}  # by identity of the tensor
    vector_bytes = 0
    for index, tensor in enumerate(program.weights):
        if index in vectors:
            values = np.ascontiguousarray(tensor.dequantize().reshape(-1), np.float32)
            native.add_vector(values)
            vector_bytes += values.nbytes
        else:
            if id(tensor) not in packed:
                packed[id(tensor)] = pack(tensor, native.isa)
            stack = packed[id(tensor)]
            native.add_matrices([stack.expert(number) for number in range(stack.experts)])
        if on_packed is not None:
            on_packed(tensor.name)
    return vector_bytes + sum(matrix.nbytes for matrix in packed.values())


def _vectors_of(program: Program) -> set[int]:
    """The numbers of the weights that ops read as vectors of floats."""
    return {index for op in program.ops for index in numbers_in(op, Role.VECTOR)}
