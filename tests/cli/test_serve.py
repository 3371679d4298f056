import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from gguf_files import tiny_llama


@pytest.fixture
def serve(environment):
    """Starts `corral serve` and gives the process; stopped at the end."""
    started = []

    def start(*args, **env):
        process = subprocess.Popen(
            [sys.executable, "-m", "corral.cli.main", "serve", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment | {"OLLAMA_HOST": "127.0.0.1:0"} | env,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close(), process.stdout.close()


def test_serve_announces_itself_and_stops_on_sigterm(serve):
    process = serve("--json")
    said = json.loads(process.stdout.readline())
    with urllib.request.urlopen(f"http://127.0.0.1:{said['port']}/api/version") as answer:
        assert json.load(answer)["version"]
    assert said["pid"] == process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_first_run_prints_commands_for_curl_ollama_and_openai(serve):
    process = serve()
    lines = [process.stdout.readline() for _ in range(9)]
    text = "".join(lines)
    address = text.split("listening on ")[1].split()[0]
    assert "corral pull smollm2:135m" in text
    curl = shlex.split(next(line for line in lines if line.startswith("  curl ")))
    assert curl[1] == f"{address}/api/chat" and json.loads(curl[3])["model"] == "smollm2:135m"
    assert f"OLLAMA_HOST={address} ollama run smollm2:135m" in text
    openai = next(line for line in lines if "OPENAI_BASE_URL" in line)
    assert f"OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY=none" in openai
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = subprocess.run(openai, shell=True, env={"PATH": path}, capture_output=True, text=True, timeout=60)
    assert "model 'smollm2:135m' not found" in said.stderr  # it ran, and reached the server


def test_a_private_server_stops_when_its_parent_is_gone(serve):
    process = serve("--json", "--with-parent")
    process.stdout.readline()
    process.stdin.close()
    assert process.wait(60) == 0


def test_a_host_that_is_no_address_is_wrong_usage_of_its_option(corral):
    done = corral("serve", "--host", "here:99999")
    assert done.returncode == 2 and done.stderr.startswith("error: --host: 'here:99999' is not an address")


def test_a_taken_port_fails_with_a_way_out(corral, server):
    done = corral("serve", server=server)
    assert done.returncode == 1 and "in use" in done.stderr


def test_the_model_that_is_named_is_loaded_before_anybody_asks(serve, corral, tmp_path):
    tiny_llama(tmp_path / "tiny.gguf")
    assert corral("pull", str(tmp_path / "tiny.gguf"), "--name", "tiny").returncode == 0
    process = serve("--json", "--model", "tiny")
    said = json.loads(process.stdout.readline())
    loaded = []
    while not loaded:
        with urllib.request.urlopen(f"http://127.0.0.1:{said['port']}/api/ps") as answer:
            loaded = json.load(answer)["models"]
    assert loaded[0]["name"] == "tiny:latest"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_model_that_cannot_be_had_stops_the_start(corral):
    done = corral("serve", "--model", "nowhere-model", OLLAMA_HOST="127.0.0.1:0")
    assert done.returncode == 3 and "not found" in done.stderr
