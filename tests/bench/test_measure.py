import asyncio
import os
import threading

import pytest

from corral.bench import session
from corral.bench.address import parse_address
from corral.bench.drive import Running, drive
from corral.bench.figures import Patience
from corral.bench.ledger import Ledger
from corral.bench.machine import ProcessTree, describe_machine, processor
from corral.bench.measure import run_nicely
from corral.bench.results import load_results
from corral.bench.session import Wanted
from corral.bench.workloads import WORKLOADS, Outcome


def driven(server, tmp_path, wanted, *, search=False, rounds=1, **running):
    path = tmp_path / "out.json"
    ledger = Ledger("corral bench", wanted.seed, wanted.size, path, lambda measurement: None)
    where = Running(parse_address(server.address), "tiny", **running)
    drive(where, wanted, ledger, lambda what, meter: None, rounds=rounds, search=search)
    assert load_results(path) == ledger.results
    return ledger.results


def test_the_standard_load_is_measured_for_each_number_of_users(server, tmp_path) -> None:
    fake = server()
    results = driven(fake, tmp_path, Wanted(users=(1, 3), size=(64, 8)), rounds=2, pid=os.getpid())
    assert [(each.users, each.round) for each in results.measurements] == [(1, 0), (3, 0), (1, 1), (3, 1)]
    for each in results.measurements:
        figures = each.figures
        assert (figures["prompt_tokens"], figures["tokens"], figures["failures"]) == (64, 8, 0)
        assert figures["kv_used_peak"] == 0.04 and figures["kv_waste_mean"] == 0.25
        assert figures["peak_memory"] > 1e6 and figures["client_cpu"] > 0
    prompts = [body["prompt"] for _, body in fake.asked if body["max_tokens"] == 8]
    assert len(set(prompts)) == len(prompts) == 8
    assert results.servers[0].name == "corral"


def test_early_stops_of_an_ollama_are_counted_and_noted(server, tmp_path) -> None:
    fake = server("ollama")
    fake.stop_after = 5
    results = driven(fake, tmp_path, Wanted(users=(2,), size=(32, 16)))
    assert results.measurements[0].figures["early_stops"] == 2
    assert results.measurements[0].figures["tokens"] == 5
    assert "may end early" in results.servers[0].notes[0]


def test_failures_are_counted_and_their_reason_kept(server, tmp_path) -> None:
    fake = server()
    fake.break_after = 4  # not in the short requests before
    results = driven(fake, tmp_path, Wanted(users=(3,), size=(32, 16)))
    (only,) = results.measurements
    assert only.figures["failures"] == 3
    assert only.problems == ("the server broke off in the middle of its reply",)


def test_shared_prefix_asks_once_cold_and_then_for_all_users(server, tmp_path) -> None:
    fake = server("llama-server")
    results = driven(fake, tmp_path, Wanted(loads=("shared-prefix",), users=(2,)))
    figures = results.measurements[0].figures
    assert figures["prompt_tokens"] == 2016 and figures["cold_first_token"] > 0
    texts = [body["prompt"] for _, body in fake.asked[-3:]]
    assert len(set(texts)) == 3
    assert len({tuple(text.split()[:1999]) for text in texts}) == 1
    assert all("cache_prompt" not in body for _, body in fake.asked[-3:])


def test_a_newcomer_is_measured_while_others_stream_and_they_are_hung_up(server, tmp_path) -> None:
    fake = server()
    fake.pause = 0.005
    results = driven(fake, tmp_path, Wanted(loads=("newcomer",), users=(2,)))
    figures = results.measurements[0].figures
    assert figures["newcomer_prompt_tokens"] == 2000 and figures["failures"] == 0
    assert 0.004 < figures["before_p50"] < 0.1 and figures["stall_ratio"] > 0
    assert [body["max_tokens"] for _, body in fake.asked[-3:]] == [1500, 1500, 16]


def test_mixed_lengths_are_as_the_table_says(server, tmp_path) -> None:
    fake = server()
    results = driven(fake, tmp_path, Wanted(loads=("mixed",), users=(3,)))
    assert results.measurements[0].figures["prompt_tokens"] == pytest.approx((60 + 350 + 120) / 3)
    assert sorted(body["max_tokens"] for _, body in fake.asked[-3:]) == [64, 200, 256]


def test_reload_unloads_first_where_the_server_can(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("corral.bench.workloads._UNLOAD", 0.01)
    fake = server("ollama")
    results = driven(fake, tmp_path, Wanted(loads=("reload",)))
    assert results.measurements[0].figures["load_to_first_token"] > 0
    assert [body.get("keep_alive") for _, body in fake.asked[-2:]] == [0, None]
    other = server("vllm")
    other.routes.remove("/api/generate")
    (only,) = driven(other, tmp_path, Wanted(loads=("reload",))).measurements
    assert only.figures["failures"] == 1 and "does not unload a model when asked" in only.problems[0]


def test_the_search_goes_on_from_what_is_measured_and_finds_the_limit(server, tmp_path, monkeypatch) -> None:
    def modelled(load, job, tree, watch):  # each user takes his share of 100 tokens/s
        return Outcome({"failures": 0, "user_rate_min": 100 / job.users, "first_token_max": job.users / 4})

    monkeypatch.setattr(session, "measure", modelled)
    results = driven(
        server(), tmp_path, Wanted(users=(1, 5), patience=Patience(rate=10, first=9)), search=True
    )
    found = {each.load: each for each in results.measurements}
    assert found["usable"].figures == {"usable_users": 10}
    tried = [each.users for each in results.measurements if each.load == "search"]
    assert sorted(tried) == [10, 11, 12, 15, 20]


def test_every_load_says_what_it_is() -> None:
    assert all(each.about and each.users and each.context >= 1024 for each in WORKLOADS.values())


def test_the_client_is_nice_and_its_caller_is_not() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)

    async def work():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert run_nicely(work, lambda: None) == min(19, before + 5) or before > 0
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_an_interrupt_ends_the_client_too() -> None:
    cancelled = threading.Event()

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_nicely(work, interrupt)
    assert cancelled.is_set()


def test_a_process_tree_is_summed_and_what_has_ended_left_out(tmp_path) -> None:
    for pid, children, memory, ticks in ((1, "2 3", 100, 250), (2, "", 50, 50)):
        (tmp_path / f"{pid}/task/{pid}").mkdir(parents=True)
        (tmp_path / f"{pid}/task/{pid}/children").write_text(children)
        (tmp_path / f"{pid}/smaps_rollup").write_text(f"Rss: 999 kB\nPss:   {memory} kB\nPss_Anon: 7 kB\n")
        (tmp_path / f"{pid}/stat").write_text(f"{pid} (a) b) S" + " 0" * 10 + f" {ticks} {ticks} 0 0")
    tree = ProcessTree(1, tmp_path)
    assert tree.pids() == [1, 2]
    assert tree.memory() == 150 * 1024
    assert tree.cpu() == 600 / os.sysconf("SC_CLK_TCK")


def test_processor_is_read_from_the_kernel(tmp_path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Fast One\nflags\t\t: fpu avx2 fma\n\nmodel name\t: B\n")
    assert processor(tmp_path) == ("Fast One", {"fpu", "avx2", "fma"})
    assert processor(tmp_path / "absent")[1] == set()


def test_the_machine_is_described_from_what_it_says(tmp_path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Fast One\nflags\t: fpu avx2 avx512_vnni\n")
    (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\n")
    machine = describe_machine(tmp_path)
    assert (machine["processor"], machine["memory"]) == ("Fast One", "16 GiB")
    assert machine["instructions"] == "avx2 avx512_vnni"
