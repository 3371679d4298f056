"""Run a file's Program on the reference executor and get whole log-prob rows."""

from pathlib import Path

import dense
import numpy as np

from batches import Part, blocks_for, make_batch, step
from corral.executors.reference import ReferenceExecutor
from corral.models.program import Program
from corral.models.table import build_program
from corral.weights.open import open_source


def logprobs(path: Path, tokens: list[int]) -> np.ndarray:
    """Log-probs [N, vocabulary] of a file's own Program, in one step."""
    with open_source(path) as source:
        return program_logprobs(build_program(source), tokens)


def program_logprobs(program: Program, tokens: list[int]) -> np.ndarray:
    """Log-probs [N, vocabulary] of a Program, in one step."""
    groups, blocks = len(program.cache.groups), blocks_for(len(tokens))
    executor = ReferenceExecutor(program, num_blocks=groups * len(blocks), max_tokens=len(tokens))
    step(executor, make_batch([Part(tokens, blocks)], groups=groups))
    result = dense.log_softmax(executor.logits.astype(np.float64))
    executor.close()
    return result


def random_tokens(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()
