import json

import pytest
from fake_server import SHOWN

from gguf_files import tiny_llama
from hf_export import export_folder


def names(done):
    return [model["name"] for model in json.loads(done.stdout)["models"]]


@pytest.fixture
def file(tmp_path):
    return tiny_llama(tmp_path / "Tiny One.gguf")


def test_list_ps_and_show_print_what_the_server_says(corral, server):
    lines = corral("list", server=server).stdout.splitlines()
    assert lines[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert lines[1].split()[:4] == ["tiny:latest", "0123456789ab", "98", "MB"] and lines[1].endswith(
        "years ago"
    )
    lines = corral("ps", server=server).stdout.splitlines()
    assert lines[0].split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert "100% CPU" in lines[1] and "4096" in lines[1] and "4 minutes from now" in lines[1]
    shown = corral("show", "tiny", server=server).stdout
    for fact in ("llama", "134.52M", "8192", "576", "Q4_1", "completion", "<end>", "Free as in beer"):
        assert fact in shown
    assert "token_embd.weight" not in shown
    assert "token_embd.weight" in corral("show", "tiny", "-v", server=server).stdout


def test_prefix_filters_and_json_is_json(corral, server):
    assert "tiny" not in corral("list", "zzz", server=server).stdout
    assert (
        json.loads(corral("ls", "TI", "--json", server=server).stdout)["models"][0]["name"] == "tiny:latest"
    )
    assert json.loads(corral("ps", "zzz", "--json", server=server).stdout) == {"models": []}
    assert json.loads(corral("show", "tiny", "--json", server=server).stdout)["template"] == "{{ prompt }}"


@pytest.mark.parametrize("part", ["license", "modelfile", "parameters", "template"])
def test_show_prints_one_part_alone(corral, server, part):
    assert corral("show", "tiny", f"--{part}", server=server).stdout == SHOWN[part] + "\n"


def test_rm_goes_on_after_a_missing_model_and_exits_3(corral, server):
    done = corral("rm", "gone", "tiny", server=server)
    assert done.returncode == 3 and "model 'gone' not found" in done.stderr
    assert done.stdout == "deleted 'tiny'\n"
    assert [body["model"] for method, _, body in server.asked if method == "DELETE"] == ["gone", "tiny"]


def test_an_unknown_name_is_told_what_can_be_fetched(corral):
    done = corral("pull", "llama9")
    assert (
        done.returncode == 3
        and "model 'llama9:latest' not found; fetched by name are smollm2:135m" in done.stderr
    )


def test_stop_unloads(corral, server):
    assert corral("stop", "tiny", server=server).stdout == "stopped 'tiny'\n"
    assert server.asked[-1] == (
        "POST",
        "/api/generate",
        {"model": "tiny", "prompt": "", "keep_alive": 0, "stream": False},
    )
    assert corral("stop", "gone", server=server).returncode == 3


def test_pull_in_a_pipe_prints_each_status_once_and_no_bar(corral, server):
    done = corral("pull", "other", server=server)
    assert done.returncode == 0 and done.stdout == "" and "\x1b" not in done.stderr
    assert done.stderr.splitlines() == [
        "pulling manifest",
        "pulling 0123456789ab",
        "verifying sha256 digest",
        "success",
    ]


def test_pull_json_prints_every_step(corral, server):
    steps = [
        json.loads(line) for line in corral("pull", "other", "--json", server=server).stdout.splitlines()
    ]
    assert steps == server.pull_steps


def test_a_pull_that_breaks_off_fails(corral, server):
    server.pull_steps = server.pull_steps[:2]
    done = corral("pull", "other", server=server)
    assert done.returncode == 1 and "before it was finished" in done.stderr


def test_pull_of_an_unknown_model_exits_3_with_the_hint(corral, server):
    done = corral("pull", "nowhere", server=server)
    assert done.returncode == 3 and "did you mean 'tiny'?" in done.stderr
    done = corral("pull", "smolm2")  # no server: the store's own answer
    assert done.returncode == 3 and "did you mean 'smollm2:135m'" in done.stderr


@pytest.mark.parametrize("command", [["ps"], ["stop", "tiny"]])
def test_what_needs_a_server_exits_4_without_one(corral, command):
    done = corral(*command)
    assert done.returncode == 4 and "corral serve" in done.stderr
    assert "corral serve" in json.loads(corral(*command, "--json").stderr)["error"]


def test_a_server_elsewhere_that_is_away_is_never_replaced_by_the_store(corral, free_port):
    done = corral("list", OLLAMA_HOST=f"127.0.0.2:{free_port}")
    assert done.returncode == 4


def test_without_a_server_the_store_is_used(corral, file):
    assert corral("list").stdout.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    done = corral("pull", str(file))
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "success"
    assert corral("pull", str(file), "--name", "mine:v1").returncode == 0
    assert set(names(corral("list", "--json"))) == {"tiny-one:latest", "mine:v1"}
    shown = json.loads(corral("show", "MINE:V1", "--json").stdout)
    assert shown["details"]["family"] == "llama" and shown["model_info"]["general.architecture"] == "llama"
    assert "llama" in corral("show", "mine:v1").stdout
    done = corral("rm", "mine:v1", "tiny-two")
    assert done.returncode == 3 and "did you mean 'tiny-one:latest'" in done.stderr
    assert [model["name"] for model in json.loads(corral("list", "--json").stdout)["models"]] == [
        "tiny-one:latest"
    ]


def test_a_file_that_is_no_model_is_refused_and_not_kept(corral, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 100)
    done = corral("pull", str(bad))
    assert (
        done.returncode == 1
        and done.stderr.splitlines()[-1].startswith("error: ")
        and "Traceback" not in done.stderr
    )
    assert str(bad) in done.stderr and ".corral-" not in done.stderr
    assert json.loads(corral("list", "--json").stdout) == {"models": []}


@pytest.mark.parametrize("name", ["../x", "a/b/c/d", "x:../../y"])
def test_a_name_that_is_none_fails_cleanly(corral, name):
    done = corral("show", name)
    assert done.returncode == 1 and "name" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_is_named_shown_and_run_where_it_is(corral, tmp_path):
    folder = export_folder(tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "Folder", dtype="BF16")
    assert corral("pull", str(folder), "--name", "mine").returncode == 0
    (row,) = json.loads(corral("list", "--json").stdout)["models"]
    assert row["name"] == "mine:latest" and row["size"] < 2 * (folder / "model.safetensors").stat().st_size
    assert (
        row["details"] | {"format": "safetensors", "family": "llama", "quantization_level": "BF16"}
        == row["details"]
    )
    shown = corral("show", "mine").stdout
    for fact in ("llama", "512", "BF16", row["details"]["parameter_size"]):
        assert fact in shown
    tensors = corral("show", "mine", "-v").stdout
    assert "model.embed_tokens.weight" in tensors and "llama.block_count" in tensors
    assert sum(path.stat().st_size for path in (tmp_path / "models/blobs").iterdir()) < 10_000
    replies = [
        corral("run", str(place), "the sheep", "--temperature", "0", "--max-tokens", "8")
        for place in (folder, tmp_path / "tiny.gguf")
    ]
    assert [reply.returncode for reply in replies] == [0, 0], replies
    assert set(names(corral("list", "--json"))) == {"mine:latest", "folder:latest", "tiny:latest"}
