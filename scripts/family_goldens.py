"""Make tests/families' goldens: `family_goldens.py [CASE ...]`, again for every case by default.

Needs torch and transformers (made with 2.13.0 and 5.24.0; CPU builds will do), which nothing else here does.
For each case it stores in configs/<case>.json how transformers saves such a model (`saved`, `tensors`), and
in goldens/<case>.npz what transformers computes in float32 for the checkpoint that the test writes. Of a new
case, configs/<case>.json need have no more than `published`.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import hf_folders
from families import checkpoints

TOP = 20


def describe(published: dict[str, Any]) -> dict[str, Any]:
    """The case: the published config, the config as transformers saves it, and the tensors that it saves."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.json").write_text(json.dumps(published))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        model.save_pretrained(path / "saved")
        saved = json.loads((path / "saved" / "config.json").read_text())
        with (path / "saved" / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = {name: entry["shape"] for name, entry in sorted(header.items()) if name != "__metadata__"}
    numbers = {r"\.layers\.\d+\.": ".layers.{i}.", r"\.experts\.\d+\.": ".experts.{e}."}
    tensors: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        for number, letter in numbers.items():
            name = re.sub(number, letter, name)
        tensors[name] = shape
    return {"published": published, "saved": saved, "tensors": tensors}


def score(config: dict[str, Any], weights: checkpoints.Weights) -> np.ndarray:
    """Log-probs [N, vocabulary] of the tokens by transformers, from the folder that the tests write."""
    with tempfile.TemporaryDirectory() as folder:
        path = hf_folders.write_folder(Path(folder), config, weights)
        model, report = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    if any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"transformers does not take the checkpoint: {report}")
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([checkpoints.tokens()]), use_cache=False).logits[0]
        return torch.log_softmax(logits.double(), dim=-1).numpy()


def golden(logprobs: np.ndarray) -> dict[str, np.ndarray]:
    """What tests/families compares: position i scores token i + 1."""
    order = np.argsort(-logprobs, axis=1)[:, :TOP]
    following = np.array(checkpoints.tokens()[1:])
    return {
        "top_ids": order.astype(np.uint8),
        "top_logprobs": np.take_along_axis(logprobs, order, axis=1).astype(np.float32),
        "next_logprobs": logprobs[np.arange(len(following)), following].astype(np.float32),
    }


def print_case(case: dict[str, dict[str, Any]]) -> str:
    """JSON with a line for each entry of a section."""
    sections = [
        f" {json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in section.items())
        + "\n }"
        for name, section in case.items()
    ]
    return "{\n" + ",\n".join(sections) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*")
    folder = checkpoints.FOLDER
    names = parser.parse_args().cases or sorted(path.stem for path in (folder / "configs").glob("*.json"))
    torch.set_num_threads(1)
    for name in names:
        case = describe(checkpoints.read_case(name)["published"])
        (folder / "configs" / f"{name}.json").write_text(print_case(case))
        logprobs = score(case["published"], checkpoints.weights(case))
        np.savez_compressed(folder / "goldens" / f"{name}.npz", **golden(logprobs))
        print(f"{name}: log-probs of the tokens {logprobs.std():.1f} nats wide")
    return 0


if __name__ == "__main__":
    sys.exit(main())
