import json
import os
import socket

import pytest

from gguf_files import tiny_llama


def report(done):
    return {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_every_check_reports_and_failures_have_a_fix(corral):
    done = corral("doctor", "--json")
    findings = report(done)
    assert {"versions", "processor", "native", "memory", "store", "server", "pip", "models"} <= set(findings)
    assert all(finding["fix"] for finding in findings.values() if finding["status"] == "fail")
    failed = any(finding["status"] == "fail" for finding in findings.values())
    assert done.returncode == (1 if failed else 0) and json.loads(done.stdout)["ok"] is not failed
    lines = corral("doctor").stdout.splitlines()
    assert all(line.startswith(("ok  ", "warn", "fail", "     ")) for line in lines)


def test_a_running_server_is_named(corral, server):
    finding = report(corral("doctor", "--json", server=server))["server"]
    assert finding["status"] == "ok" and "0.32.0" in finding["detail"]


def test_a_port_taken_by_something_else_fails_with_a_way_out(corral):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken.close()
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))  # bound, but nobody answers
            done = corral("doctor", "--json", OLLAMA_HOST=f"127.0.0.1:{port}")
    finding = report(done)["server"]
    assert done.returncode == 1 and finding["status"] == "fail" and f":{port + 1}" in finding["fix"]


def test_a_damaged_model_is_found(corral, tmp_path):
    corral("pull", str(tiny_llama(tmp_path / "tiny.gguf")))
    assert report(corral("doctor", "--json"))["models"]["status"] == "ok"
    blob = max((tmp_path / "models" / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(bytes(blob.stat().st_size))
    assert report(corral("doctor", "--json"))["models"]["status"] == "ok"  # the sizes are right
    finding = report(corral("doctor", "--json", "--verify"))["models"]
    assert finding["status"] == "fail" and "corral pull tiny:latest" in finding["fix"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written_fails(corral, tmp_path):
    (tmp_path / "models").mkdir(mode=0o500)
    assert report(corral("doctor", "--json"))["store"]["status"] == "fail"


def test_a_store_that_is_a_file_fails(corral, tmp_path):
    (tmp_path / "models").write_text("")
    finding = report(corral("doctor", "--json"))["store"]
    assert finding["status"] == "fail" and "CORRAL_MODELS" in finding["fix"]
    assert "chown" not in finding["fix"]
