"""Commits as installed programs, and the models to measure them with: made once, kept in a folder."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import model_variants
from corral.config import child_environment
from corral.errors import UserError
from corral.store.local import Store

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "127.0.0.1:1"  # so that a pull goes into the store itself and through no server


@dataclass(frozen=True)
class Build:
    """A checkout with an environment of its own."""

    name: str  # as it was asked for
    home: Path

    @property
    def python(self) -> str:
        """The interpreter that imports this build's corral."""
        return str(self.home / ".venv" / "bin" / "python")


def build(name: str, cache: Path) -> Build:
    """The build of a commit; a folder that has an environment is taken as it is."""
    if (Path(name) / ".venv").is_dir():
        return Build(name, Path(name).resolve())
    commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").decode().strip()
    home = cache / "builds" / commit[:12]
    if not (home / "built").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        subprocess.run(["tar", "-x", "-C", str(home)], input=_git("archive", commit), check=True)
        print(f"{name}:", file=sys.stderr, end=" ", flush=True)
        setup = [sys.executable, str(home / "scripts" / "setup.py"), ".venv"]
        if subprocess.run(setup, cwd=home, stdout=sys.stderr, check=False).returncode:
            raise UserError(f"{name} does not build; see {home}")
        (home / "built").touch()
    return Build(name, home)


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"git {' '.join(arguments)}: {done.stderr.decode().strip() or 'no such commit'}")
    return done.stdout


def model_file(model: str, cache: Path, older: Build) -> Path:
    """The GGUF file of a model in the cache's store, fetched or made if it is missing.

    The older build adds it, as every newer one can read its store.
    """
    store = Store(cache / "models")
    if model not in {stored.name.display for stored in store.list()}:
        make = MADE.get(model)
        source = make(cache, older) if make else model
        command = [older.python, "-P", "-m", "corral.cli.main", "pull", str(source), "--name", model]
        environment = child_environment(
            CORRAL_MODELS=str(cache / "models"), OLLAMA_HOST=NOWHERE, PYTHONPATH=""
        )
        if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode:
            raise UserError(f"{model} could not be fetched")
        if make:
            Path(source).unlink()
    return store.find(model).path


def _random_llama(cache: Path, older: Build) -> Path:
    """A llama of a billion random weights in about 650 MB."""
    target = cache / "llama-1b.gguf"
    print("making a llama of a billion random weights ...", file=sys.stderr, flush=True)
    model_variants.random_llama(model_file("smollm2:135m", cache, older), target, model_variants.Shape())
    return target


MADE: Mapping[str, Callable[[Path, Build], Path]] = {"llama-1b:latest": _random_llama}
