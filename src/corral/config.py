"""The only reader of the environment: makes the frozen Settings that everything else is given."""

import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from corral.errors import UserError

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 11434
DEFAULT_MODEL = "smollm2:135m"
_MAX_DURATION = 60  # characters; a request brings durations too, and searching a long one is slow
ISAS = ("auto", "scalar", "avx2", "avx512vnni", "neon")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may set. Sizes in bytes, times in seconds."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    models: Path = Path.home() / ".corral" / "models"
    history: Path = Path.home() / ".corral" / "history"  # of the interactive prompt
    keep_alive: float = 300.0  # < 0 = forever
    load_timeout: float = 300.0
    step_timeout: float = 120.0  # an engine that is busy and silent for so long is restarted
    drain_timeout: float = 30.0
    max_queue: int = 512  # requests waiting or running in one model
    max_loaded_models: int = 0  # 0 = as many as fit the memory budget
    memory_budget: int = 0  # for weights and KV of all models; 0 = 80 % of what is free at start
    # KV memory of one model; 0 = a quarter of what is free, at most what its requests can use
    kv_cache: int = 0
    context_length: int = 0  # default context of a request; 0 = the model's own
    threads: int = 0  # 0 = the cores that this process may use
    batch_tokens: int = 256  # tokens computed in one step
    max_sequences: int = 64  # sequences computed side by side
    drafts: bool = True  # guess tokens ahead where that pays; replies are the same
    isa: str = "auto"  # native kernels: the best that the processor has, or one of ISAS
    origins: tuple[str, ...] = ()  # web pages that may call us beside local ones; `*` matches anything


def load_settings(environ: dict[str, str] | None = None) -> Settings:
    """Read Settings from the environment; UserError names the variable that is wrong."""
    env = _Environment(dict(os.environ) if environ is None else environ)
    host, port = env.host("OLLAMA_HOST")
    home = Path(env.text("HOME", str(Path.home())))
    return Settings(
        host=host,
        port=port,
        history=home / ".corral" / "history",
        models=Path(env.text("CORRAL_MODELS", str(home / ".corral" / "models"))).expanduser(),
        keep_alive=env.duration("OLLAMA_KEEP_ALIVE", 300.0),
        load_timeout=env.timeout("OLLAMA_LOAD_TIMEOUT", 300.0),
        step_timeout=env.timeout("CORRAL_STEP_TIMEOUT", 120.0),
        drain_timeout=max(0.0, env.duration("CORRAL_DRAIN_TIMEOUT", 30.0)),
        max_queue=env.integer("OLLAMA_MAX_QUEUE", 512, least=1),
        max_loaded_models=env.integer("OLLAMA_MAX_LOADED_MODELS", 0),
        memory_budget=env.size("CORRAL_MEMORY", 0),
        kv_cache=env.size("CORRAL_KV_CACHE", 0),
        context_length=env.integer("OLLAMA_CONTEXT_LENGTH", 0),
        threads=env.integer("CORRAL_THREADS", 0),
        batch_tokens=env.integer("CORRAL_BATCH_TOKENS", 256, least=1),
        max_sequences=env.integer("CORRAL_MAX_SEQUENCES", 64, least=1),
        drafts=env.choice("CORRAL_DRAFTS", ("auto", "off")) == "auto",
        isa=env.choice("CORRAL_ISA", ISAS),
        origins=tuple(part.strip() for part in env.text("OLLAMA_ORIGINS", "").split(",") if part.strip()),
    )


def parse_host(text: str) -> tuple[str, int]:
    """Split `[http://]host[:port]` as Ollama does; a bare host has port 11434, `:9000` all addresses.

    Raises ValueError, with the remedy, if `text` is nothing of that.
    """
    match = re.fullmatch(r"(?:(https?)://)?(\[[^\]]*\]|[^:/]*)(?::(\d{1,5}))?/*", text.strip().strip("\"'"))
    if not match or int(match[3] or 1) > 65535:
        raise ValueError(f"'{text}' is not an address like 127.0.0.1:11434")
    if match[1] == "https":
        raise ValueError("https is not supported; use http://")
    port = int(match[3]) if match[3] else (80 if match[1] else DEFAULT_PORT)
    host = match[2].strip("[]")
    return host or ("0.0.0.0" if match[3] else DEFAULT_HOST), port


def host_to_call(host: str) -> str:
    """The host to call for a server that listens at `host`: one that listens everywhere is called locally."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def http_address(host: str, port: int) -> str:
    """The address `http://host:port` at which to call a server that listens at `host`."""
    host = host_to_call(host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def parse_duration(text: str) -> float:
    """Seconds from a Go duration (`1h30m`, `500ms`, `-1s`) or a bare number; ValueError if it is neither."""
    text = text.strip()
    if len(text) > _MAX_DURATION:
        raise ValueError(f"'{text[:_MAX_DURATION]}...' is too long for a duration like 5m or 1h30m")
    if re.fullmatch(r"[-+]?\d+(\.\d*)?", text):
        return float(text)
    sign = -1.0 if text.startswith("-") else 1.0
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(a + b for a, b in parts) != re.sub(r"^[-+]", "", text):
        raise ValueError(f"'{text}' is not a duration like 5m or 1h30m")
    units = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sign * sum(float(value) * units[unit] for value, unit in parts)


def module_path() -> str:
    """A PYTHONPATH with which a child process imports what this one does."""
    return os.pathsep.join(path for path in sys.path if path)


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment with `changes`, for a child process."""
    return {**os.environ, **changes}


class _Environment:
    """Environment variables by type; an empty one counts as unset. UserError names one that is wrong."""

    def __init__(self, values: dict[str, str]):
        self.values = values

    def text(self, name: str, default: str) -> str:
        return self.values.get(name, "").strip().strip("\"'") or default

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        text = self.text(name, choices[0])
        if text not in choices:
            raise UserError(f"{name}: '{text}' is not one of {', '.join(choices)}")
        return text

    def integer(self, name: str, default: int, *, least: int = 0) -> int:
        text = self.text(name, "")
        if text and not (re.fullmatch(r"\d{1,18}", text) and int(text) >= least):
            raise UserError(f"{name}: '{text}' is not a whole number from {least} on")
        return int(text) if text else default

    def host(self, name: str) -> tuple[str, int]:
        try:
            return parse_host(self.text(name, f"{DEFAULT_HOST}:{DEFAULT_PORT}"))
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None

    def timeout(self, name: str, default: float) -> float:
        """Seconds of a time limit; 0 or less means no limit, as in Ollama."""
        seconds = self.duration(name, default)
        return seconds if seconds > 0 else math.inf

    def duration(self, name: str, default: float) -> float:
        text = self.text(name, "")
        try:
            return parse_duration(text) if text else default
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None

    def size(self, name: str, default: int) -> int:
        text = self.text(name, "")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.upper())
        if text and not match:
            raise UserError(f"{name}: '{text}' is not a size like 512M or 4G")
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " ")) if match else default
