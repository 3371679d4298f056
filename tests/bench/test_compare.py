import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

from corral.bench.compare import Agenda, Comparison, Entrant
from corral.bench.dialects import KINDS
from corral.bench.figures import Patience
from corral.bench.launch import DidNotStart, free_port, launched
from corral.bench.ledger import Ledger
from corral.bench.peers import PEERS, Peer, Start
from corral.bench.results import load_results
from corral.bench.session import Wanted

SCRIPT = str(Path(__file__).with_name("fake_peer.py"))


def entrant(name, kind="corral", odd=(), **fields):
    def arguments(start):
        return [SCRIPT, str(start.port), kind, *odd]

    peer = Peer(name, KINDS[kind], sys.executable, arguments, lambda start: {}, "install it", **fields)
    return Entrant(peer, sys.executable, {"tiny": "tiny.gguf"})


def compared(tmp_path, entrants, models=("tiny",), start_limit=20.0, **plan):
    wanted = plan.pop("wanted", Wanted(users=(1, 2), size=(32, 4)))
    path = tmp_path / "out.json"
    ledger = Ledger("corral bench compare", wanted.seed, wanted.size, path, lambda measurement: None)
    chosen = Agenda(models, wanted, start_limit=start_limit, **plan)
    Comparison(chosen, entrants, ledger, lambda what, meter: None).run()
    assert load_results(path) == ledger.results
    return ledger.results


def test_servers_take_turns_within_every_round(tmp_path) -> None:
    results = compared(tmp_path, [entrant("a"), entrant("b", "vllm")], rounds=2)
    order = [(each.round, each.users, each.server) for each in results.measurements]
    assert order == [(turn, users, name) for turn in (0, 1) for users in (1, 2) for name in "ab"]
    for each in results.measurements:
        assert each.figures["start_to_first_token"] > 0 and each.figures["peak_memory"] > 1e6
        assert (each.figures["prompt_tokens"], each.figures["failures"]) == (32, 0)
    assert [server.version for server in results.servers] == ["", "0.30"]


def test_a_server_that_takes_long_to_start_is_started_once_a_round(tmp_path) -> None:
    results = compared(tmp_path, [entrant("a"), entrant("slow", lasting=True)], rounds=1)
    order = [(each.users, each.server) for each in results.measurements]
    assert order == [(1, "a"), (1, "slow"), (2, "slow"), (2, "a")]
    starts = {each.figures["start_to_first_token"] for each in results.measurements if each.server == "slow"}
    assert len(starts) == 1


def test_one_slot_for_one_user_is_taken_from_the_same_server_with_a_slot_a_user(tmp_path) -> None:
    servers = [entrant("llama-server"), entrant("llama-server-1-slot", one_slot=True)]
    results = compared(tmp_path, servers, rounds=1)
    first, copy, *others = results.measurements
    assert (copy.server, copy.figures) == ("llama-server-1-slot", first.figures)
    assert [each.server for each in others] == ["llama-server", "llama-server-1-slot"]
    assert others[0].figures != others[1].figures


def test_servers_that_fail_are_told_and_the_rest_goes_on(tmp_path) -> None:
    servers = [
        entrant("dead", odd=["die"]),
        entrant("mortal", odd=["die-after", "9"]),
        dataclasses.replace(entrant("gone"), program="/no/such/program"),
        dataclasses.replace(entrant("bare"), models={}),
        entrant("fine"),
    ]
    results = compared(tmp_path, servers, wanted=Wanted(users=(8,), size=(16, 4)), rounds=1)
    assert [each.server for each in results.measurements if not each.figures["failures"]] == ["fine"]
    problems = "\n".join(results.problems)
    assert "dead with tiny, 8 users: it ended with status 1. cannot open the model" in problems
    assert "mortal with tiny, 8 users: mortal died with status 7" in problems
    assert "/no/such/program cannot be run: No such file" in problems
    assert "bare with tiny: give its folder with --vllm-model tiny=FOLDER" in problems


def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path) -> None:
    before = time.monotonic()
    results = compared(tmp_path, [entrant("late", odd=["late"])], start_limit=0.3, rounds=1)
    assert "did not answer in time" in results.problems[0]
    assert time.monotonic() - before < 30


def test_idle_and_search_come_after_the_rounds(tmp_path) -> None:
    wanted = Wanted(users=(1,), size=(16, 4), patience=Patience(rate=0.001, first=60), most=3)
    results = compared(tmp_path, [entrant("a")], rounds=1, idle=0.2, search=True, wanted=wanted)
    assert [(each.load, each.users) for each in results.measurements] == [
        ("standard", 1),
        ("search", 2),
        ("search", 3),
        ("usable", 3),
        ("idle", 0),
    ]
    assert results.measurements[-1].figures["idle_cpu"] < 1


def start(**changes):
    given = {"program": "/opt/x/prog", "model": "tiny", "path": "/store/sha256-ab", "port": 7777}
    return Start(**{**given, "users": 20, "context": 1024, "cores": 2, **changes})


def test_a_started_server_is_ended_with_its_children() -> None:
    peer = entrant("a").peer
    with launched(peer, start(program=sys.executable, port=free_port()), 20) as started:
        assert started.alive and started.first_token > 0
        pid = started.process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_refusal_at_the_first_request_is_told(monkeypatch) -> None:
    monkeypatch.setattr("corral.bench.launch.ask", _refused)
    with (
        pytest.raises(DidNotStart, match="no such model"),
        launched(entrant("a").peer, start(program=sys.executable, port=free_port()), 20),
    ):
        raise AssertionError("it was not ready")


async def _refused(target, what):
    from corral.bench.target import TimedReply

    return TimedReply(0.0, error="no such model")


def test_llama_server_has_a_slot_a_user_or_one_and_all_cores() -> None:
    many = PEERS["llama-server"].command(start())
    one = PEERS["llama-server-1-slot"].command(start())
    for command, slots, context in ((many, "20", "20480"), (one, "1", "1024")):
        assert command[command.index("-np") + 1] == slots and command[command.index("-c") + 1] == context
        assert command[command.index("-t") + 1] == command[command.index("-tb") + 1] == "2"
        assert "--no-kv-unified" in command
    assert PEERS["llama-server"].environment(start())["LD_LIBRARY_PATH"] == "/opt/x"


def test_vllm_is_started_at_its_best() -> None:
    vllm = PEERS["vllm"]
    command, settings = vllm.command(start()), vllm.environment(start())
    assert command[:3] == ["/opt/x/prog", "serve", "/store/sha256-ab"]
    assert command[-4:] == ["--max-model-len", "2048", "--dtype", "float32"]
    assert settings["VLLM_CPU_OMP_THREADS_BIND"] == "0-1" and settings["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"


@pytest.mark.parametrize("name", PEERS)
def test_commands_for_readers_name_no_folder_and_no_port(name) -> None:
    words = PEERS[name].in_words(start())
    assert "/" not in words and "7777" not in words
    assert PEERS[name].program in words or words == "corral serve --model tiny"


def test_every_peer_but_ours_says_how_to_install_it() -> None:
    assert all("pip install" in peer.remedy for name, peer in PEERS.items() if name != "corral")
