"""The native executor: packs a Program's weights once, then runs each step in one C++ call.

The call is made by `collect`: the threads that compute are those that would prepare the sampling meanwhile.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral import _native
from corral.executors.batch import Batch, SamplingRows, StepResult
from corral.executors.packing import pack
from corral.models.ops import Role, numbers_in
from corral.models.program import Program
from corral.types import MAX_TOP_LOGPROBS

OnPacked = Callable[[str], None]


class NativeExecutor:
    """Runs a Program on the CPU. `on_packed(name)` is told when a tensor's bytes are needed no more."""

    def __init__(  # noqa: PLR0913 - one place builds it, by name
        self,
        program: Program,
        *,
        num_blocks: int,
        max_tokens: int,
        max_sequences: int,
        threads: int,
        isa: str = "auto",
        on_packed: OnPacked | None = None,
    ):
        self.num_blocks, self.max_tokens = num_blocks, max_tokens
        self._output_width = program.output_width
        groups = program.kv_groups
        self.kv_windows = tuple(group.window for group in groups)
        self._program: _native.Program | None = _native.Program(
            program.vocab_size, max_tokens, max_sequences, num_blocks, threads, isa
        )
        self.isa = self._program.isa  # the kernels in use
        for buffer in program.buffers:
            if buffer.base is None:
                self._program.add_buffer(buffer.width, buffer.selected)
            else:
                self._program.add_view(buffer.base, buffer.start, buffer.width)
        group_of = {layer: number for number, group in enumerate(groups) for layer in group.layers}
        for number, layer in enumerate(program.kv_layers):
            group = group_of[number]
            self._program.add_kv_layer(layer.kv_heads, layer.head_dim, layer.window or 0, group)
        self.weight_bytes = _add_weights(self._program, program, on_packed)
        for op in program.ops:
            self._program.add(op)
        self._program.finish()
        self._batch: Batch

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


def _add_weights(native: _native.Program, program: Program, on_packed: OnPacked | None) -> int:
    """Hand over every weight, packing a tensor that two ops share once. Returns the bytes that they take."""
    vectors = {index for op in program.ops for index in numbers_in(op, Role.VECTOR)}
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
