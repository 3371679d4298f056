"""The native module: built from native/ by CMake."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral.models.ops import Op

KV_BLOCK: int  # positions of a block of keys and values

class Matrix:
    """A weight matrix in panels of 8 rows, or a stack of `experts` such matrices (native/matrix.h)."""

    def __init__(
        self,
        rows: int,
        cols: int,
        isa: str,
        *,
        codes: str,
        scales: str = "none",
        group: int = 0,
        zero: int = 0,
        unit: float = 1.0,
        table: NDArray[np.int8] | None = None,
        experts: int = 1,
    ) -> None: ...
    def expert(self, index: int) -> Matrix:
        """One matrix of a stack, in the stack's memory: what is packed and multiplied."""

    def pack(
        self,
        first_row: int,
        codes: NDArray[np.uint8],
        scale: NDArray[np.uint16],
        offset: NDArray[np.uint16] | None = None,
        sub_scale: NDArray[np.uint8] | None = None,
        sub_offset: NDArray[np.uint8] | None = None,
        zero: NDArray[np.uint8] | None = None,
    ) -> None:
        """Pack some rows of Groups: multiples of 8 rows, but at the end. Signed numbers by their bits."""

    def pack_file(self, raw: NDArray[np.uint8], type_name: str) -> None:
        """Pack all rows from a file's blocks of one of `file_types`."""

    def pack_floats(self, first_row: int, values: NDArray[np.float32]) -> None: ...
    def pack_raw_floats(self, raw: NDArray[np.uint8]) -> None:
        """Pack all rows from a file's floats, of the matrix's own kind."""

    def dequantize_row(self, row: int) -> NDArray[np.float32]: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

def file_types() -> list[str]:
    """Names of the tensor types that Matrix.pack_file takes."""

def matmul(
    matrix: Matrix, x: NDArray[np.float32], threads: int, isa: str, chunk: int = 4
) -> NDArray[np.float32]:
    """x [N, cols] times the matrix's rows, as an executor does it: [N, rows]."""

def quantize_row(x: NDArray[np.float32], isa: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(codes, a scale for every 8 of them)."""

def isas() -> list[str]:
    """Names of the kernels that this processor can run."""

class Program:
    """Runs a model's ops; steps run without the GIL, one at a time."""

    def __init__(
        self, vocab: int, max_tokens: int, max_sequences: int, num_blocks: list[int], threads: int, isa: str
    ) -> None: ...
    def add_buffer(self, width: int, selected: bool) -> int: ...
    def add_view(self, base: int, start: int, width: int) -> int:
        """Columns of a buffer that has memory of its own."""

    def add_kv_group(self, window: int, pool: int) -> int:
        """Layers that share block tables; window 0 = all positions."""

    def add_kv_layer(self, kv_heads: int, key_size: int, value_size: int, group: int) -> int: ...
    def add_matrices(self, matrices: list[Matrix]) -> int:
        """One weight: a matrix, or one for each expert."""

    def add_vector(self, values: NDArray[np.float32]) -> int: ...
    def add(self, op: Op) -> None:
        """An op that names buffers; ValueError if it does not fit or the native executor has no such op."""

    def finish(self) -> None:
        """Take the memory; nothing may be added afterwards."""

    def step(self, batch: Any, sampling: Any, result: Any) -> None:
        """Run a Batch with its SamplingRows (executors.batch), into the arrays of a StepResult.

        ValueError if they do not fit.
        """

    def buffer(self, index: int) -> NDArray[np.float32]:
        """A copy of a buffer's rows as the last step left them."""

    def profile(self, on: bool) -> None:
        """Begin to measure where steps' time goes, or stop."""

    def profile_seconds(self) -> dict[str, float]:
        """Seconds by kind of region."""

    @property
    def buffer_bytes(self) -> int:
        """What finish has taken for the rows of a step."""

    @property
    def isa(self) -> str: ...
