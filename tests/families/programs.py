"""How the tests of families open a checkpoint: as an engine process does, up to what it needs."""

from pathlib import Path

from corral.engine.load import open_model
from corral.engine.protocol import EngineSpec
from corral.models.program import Program


def open_program(path: Path) -> Program:
    """The Program of a GGUF file or of a folder, whose memory can be told."""
    spec = EngineSpec(path=str(path), threads=1, batch_tokens=64, max_sequences=2)
    model = open_model(spec)
    assert model.need.kv_least > 0 and all(device.total > 0 for device in model.need.memory.values())
    return model.program
