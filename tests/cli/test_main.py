import json
import subprocess
import sys

import pytest

from corral.cli.main import ALIASES, COMMANDS

HEAVY = "numpy rich prompt_toolkit starlette uvicorn tokenizers minijinja msgspec asyncio corral._native"


def test_help_lists_every_command_and_the_exit_codes(corral):
    done = corral("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"\n  {name}" in done.stdout for name in COMMANDS)
    assert "130  interrupted" in done.stdout
    assert corral("help").stdout == done.stdout


@pytest.mark.parametrize("name", [*COMMANDS, *ALIASES])
def test_every_command_has_help_with_examples(corral, name):
    done = corral(name, "--help")
    assert done.returncode == 0 and "examples:\n  corral" in done.stdout
    assert "--json" in done.stdout and "exit codes:" in done.stdout
    assert corral("help", name).stdout == done.stdout


def test_no_command_is_wrong_usage_and_shows_help(corral):
    done = corral()
    assert done.returncode == 2 and "commands:" in done.stdout


@pytest.mark.parametrize(("typo", "meant"), [("lst", "list"), ("serv", "serve"), ("docter", "doctor")])
def test_unknown_command_names_the_nearest(corral, typo, meant):
    done = corral(typo)
    assert done.returncode == 2 and f"did you mean `corral {meant}`?" in done.stderr


def test_unknown_flag_is_wrong_usage(corral):
    done = corral("list", "--frobnicate")
    assert done.returncode == 2 and "--frobnicate" in done.stderr


def test_version_in_both_forms(corral):
    assert corral("version").stdout == corral("--version").stdout == corral("-v").stdout
    assert corral("version").stdout.startswith("corral ")
    assert json.loads(corral("version", "--json").stdout)["version"]


def test_wrong_setting_is_wrong_usage_and_named(corral):
    done = corral("list", OLLAMA_HOST="https://x:99999999")
    assert done.returncode == 2 and "OLLAMA_HOST" in done.stderr
    done = corral("list", "--json", OLLAMA_KEEP_ALIVE="soon")
    assert done.returncode == 2 and "OLLAMA_KEEP_ALIVE" in json.loads(done.stderr)["error"]


@pytest.mark.parametrize(
    "command", ["version", "--help", "list", "pull --help", "ps", "show --help", "rm --help", "run --help"]
)
def test_start_up_imports_nothing_heavy(environment, command):
    script = (
        "import sys; from corral.cli.main import main\n"
        "try: main(sys.argv[1].split())\n"
        "finally: print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command], capture_output=True, text=True, env=environment
    )
    loaded = set(done.stdout.splitlines())
    assert "corral.cli.main" in loaded
    assert loaded & set(HEAVY.split()) == set()


def test_a_reader_that_stops_early_is_no_error(environment, server):
    shell = f"{sys.executable} -m corral.cli.main show tiny --json | true; echo ${{PIPESTATUS[0]}}"
    env = environment | {"OLLAMA_HOST": server.host}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "0" and "Traceback" not in done.stderr
