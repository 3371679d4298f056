"""Measure how near corral's probabilities are to the float32 truth: `accuracy.py [MODEL ...]`.

Mean KL divergence and top-1 agreement over the golden passages, through a running server, at the positions
for which llama.cpp has figures; llama.cpp's own beside them. A JSON line a model.
"""

import asyncio
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from corral.bench.exchange import fetch
from corral.bench.launch import free_port, launched
from corral.bench.peers import PEERS, Start
from corral.bench.target import Target
from corral.config import load_settings
from corral.store.local import Store

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens"
MODELS = {"smollm2:135m": "smollm2", "gemma3:270m": "gemma3"}

Scores = dict[str, list[dict[int, float]]]  # of each passage, what `score` gives


def main() -> int:
    peers = json.loads((GOLDENS / "llama_cpp.json").read_text())
    store = Store(load_settings().models)
    for model in sys.argv[1:] or MODELS:
        name = MODELS[model]
        store.find(model)  # says how to fetch it
        start = Start(sys.executable, model, "", free_port(), 1, 2048, 0)
        with launched(PEERS["corral"], start, 300.0) as server:
            goldens = np.load(GOLDENS / f"{name}.npz")
            scores = {passage: score(server.target, tokens) for passage, tokens in passages(goldens).items()}
        figures = measure(scores, goldens, peers[name]["left_out"])
        peer = {key: peers[name][key] for key in ("mean_kl", "top1")}
        print(json.dumps({"model": model, **figures, "llama_cpp": peer}), flush=True)
    return 0


def passages(goldens: Any) -> dict[str, Any]:
    """The token ids of each golden passage by its name."""
    names = sorted({key.rsplit(".", 1)[0] for key in goldens.files})
    return {name: goldens[f"{name}.tokens"] for name in names}


def measure(scores: Scores, goldens: Any, left_out: dict[str, list[int]]) -> dict[str, float]:
    """Figures over all passages, without the positions left out."""
    divergences, agree = [], []
    for name, rows in scores.items():
        truth = zip(goldens[f"{name}.top_ids"], goldens[f"{name}.top_logprobs"], rows, strict=False)
        for position, (ids, logprobs, row) in enumerate(truth):
            if position not in left_out.get(name, []):
                divergences.append(divergence(ids, logprobs.astype(float), row))
                agree.append(max(row, key=lambda token: row[token]) == int(ids[0]))
    return {
        "positions": len(agree),
        "mean_kl": round(statistics.mean(divergences), 6),
        "p99_kl": round(float(np.quantile(divergences, 0.99)), 5),
        "top1": round(statistics.mean(agree), 4),
    }


def score(target: Target, tokens: "np.ndarray") -> list[dict[int, float]]:
    """The server's 20 likeliest next tokens after each prefix of `tokens`, {id: log-prob}."""
    body = {"model": target.model, "prompt": tokens.tolist(), "max_tokens": 0, "echo": True, "logprobs": 20}
    data = json.dumps(body | {"return_tokens_as_token_ids": True}).encode()
    reply = json.loads(asyncio.run(fetch(target.address, "/v1/completions", data, 600.0)))
    rows = reply["choices"][0]["logprobs"]["top_logprobs"][1:]
    return [{int(key.split(":")[1]): value for key, value in row.items()} for row in rows]


def divergence(ids: "np.ndarray", logprobs: "np.ndarray", row: dict[int, float]) -> float:
    """KL(truth || row) in nats over the truth's top 20 and the rest as one event."""
    other = np.array([row.get(int(token), min(row.values())) for token in ids])
    truth = np.exp(logprobs)
    rest, other_rest = max(1e-9, 1 - truth.sum()), max(1e-9, 1 - np.exp(other).sum())
    return float((truth * (logprobs - other)).sum() + rest * math.log(rest / other_rest))


if __name__ == "__main__":
    sys.exit(main())
