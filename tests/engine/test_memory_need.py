"""What a model says that it needs and what its engine process really takes, for six different shapes."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("corral._native", reason="the native module is not built", exc_type=ImportError)

from corral.engine.client import EngineClient
from corral.engine.process import EngineProcess
from corral.engine.protocol import EngineSpec
from corral.types import SamplingParams, Scores
from gguf_files import tiny_gemma3, tiny_llama
from outputs import outputs_of

CONTEXT, SEQUENCES, STEP = 512, 4, 128

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux"),
]

SHAPES = {
    "wide and shallow": (
        tiny_llama,
        {"layers": 2, "hidden": 1536, "ffn": 6144, "heads": 12, "kv_heads": 4, "types": ("Q4_K", "Q6_K")},
    ),
    "deep and narrow": (
        tiny_llama,
        {"layers": 48, "hidden": 256, "ffn": 768, "heads": 4, "kv_heads": 1, "types": ("Q8_0", "Q5_0")},
    ),
    "large vocabulary": (
        tiny_llama,
        {"layers": 4, "hidden": 512, "ffn": 1536, "heads": 8, "vocab": 90_000, "embed_type": "Q6_K"},
    ),
    "windows": (
        tiny_gemma3,
        {"layers": 12, "hidden": 768, "ffn": 2304, "heads": 4, "head_dim": 256, "window": 64},
    ),
    "a key for every query": (
        tiny_llama,
        {"layers": 10, "hidden": 768, "ffn": 2048, "heads": 12, "kv_heads": 12, "types": ("Q4_K",)},
    ),
    "half floats": (
        tiny_llama,
        {"layers": 6, "hidden": 512, "ffn": 1536, "heads": 8, "types": ("F16", "BF16"), "embed_type": "F16"},
    ),
}


def proportional_bytes(pid: int) -> int:
    """Memory of a process, shared pages divided among those that share them."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    )
    return int(fields["Pss"].split()[0]) * 1024


async def measure(path: Path) -> tuple[int, int, int]:
    """Bytes that a model says it needs, that it says it has taken, and that its process has really taken."""
    process = EngineProcess()
    needed = before = 0

    async def reserve(need) -> int:
        nonlocal needed, before
        kv_bytes = SEQUENCES * need.kv_context
        needed = need.memory["cpu"].total + kv_bytes
        before = proportional_bytes(process.pid)
        return kv_bytes

    spec = EngineSpec(path=str(path), threads=2, batch_tokens=STEP, max_sequences=SEQUENCES, drafts=False)
    client = await EngineClient.start(spec, reserve, load_timeout=120, step_timeout=120, process=process)
    try:
        # Full steps touch all rows of buffers; one prompt after the other takes blocks that are still blank.
        params, scores = SamplingParams(max_tokens=1), Scores(prompt_logprobs=0)
        for first in range(SEQUENCES):
            prompt = [(first + i) % 300 for i in range(CONTEXT - 1)]
            [output async for output in outputs_of(client, prompt, params, scores=scores)]
        taken = client.ready.memory["cpu"].total
        return needed, taken, proportional_bytes(process.pid) - before
    finally:
        await client.stop()


@pytest.mark.parametrize(
    "shape",
    [pytest.param(shape, marks=pytest.mark.slow if number else ()) for number, shape in enumerate(SHAPES)],
)
def test_what_a_model_needs_is_what_its_process_takes(shape: str, tmp_path: Path) -> None:
    write, sizes = SHAPES[shape]
    path = write(tmp_path / "model.gguf", context=CONTEXT, **sizes)
    needed, taken, real = asyncio.run(measure(path))
    assert needed == pytest.approx(real, rel=0.1)
    assert taken == pytest.approx(real, rel=0.1)
