import pytest


@pytest.fixture
def repl(terminal, server):
    """A conversation that is ready for the first line."""
    return terminal("run", "tiny", server=server)


def test_conversation_remembers_and_leaves_with_bye(repl, server):
    repl.line("First question")
    repl.expect("Hello wörld")
    repl.line("Second question")
    repl.expect("Hello wörld")
    repl.line("/bye")
    code, _ = repl.wait()
    assert code == 0
    assert [message["content"] for message in server.chats()[1]["messages"]] == [
        "First question",
        "Hello wörld",
        "Second question",
    ]
    assert server.asked[1][2]["messages"] == []  # the model is loaded before the first prompt


def test_ctrl_d_leaves_and_ctrl_c_says_how(repl):
    repl.expect(">>> ")
    repl.type("\x03")
    repl.expect("Use Ctrl + d or /bye to exit.")
    repl.expect(">>> ")
    repl.type("\x04")
    assert repl.wait()[0] == 0


def test_ctrl_c_stops_a_reply_and_keeps_what_came(repl, server):
    server.hang.set()
    repl.line("Tell me")
    repl.expect("Hello wörld")
    repl.type("\x03")
    assert server.gone.wait(10)
    server.hang.clear()
    repl.line("Go on")
    repl.expect("Hello wörld")
    repl.line("/bye")
    assert repl.wait()[0] == 0
    assert [message["role"] for message in server.chats()[-1]["messages"]] == ["user", "assistant", "user"]


def test_several_lines_between_triple_quotes(repl, server):
    repl.line('"""one')
    repl.expect("... ")
    repl.expect('""" ends the message')
    repl.type("two\r")
    repl.expect("... ")
    repl.type('three"""\r')
    repl.expect("Hello wörld")
    repl.line("/bye")
    repl.wait()
    assert server.chats()[0]["messages"][0]["content"] == "one\ntwo\nthree"


def test_set_changes_the_next_request(repl, server):
    repl.line("/set parameter temperature 0.25")
    repl.expect("Set parameter 'temperature' to '0.25'")
    repl.line("/set parameter stop A B")
    repl.expect("Set parameter")
    repl.line("/set system Be brief")
    repl.expect("Set system message.")
    repl.line("/set verbose")
    repl.expect("Set 'verbose' mode.")
    repl.line("Hi")
    repl.expect("eval rate")
    repl.line("/bye")
    repl.wait()
    chat = server.chats()[0]
    assert chat["options"] == {"temperature": 0.25, "stop": ["A", "B"]}
    assert chat["messages"][0] == {"role": "system", "content": "Be brief"}


def test_mistakes_are_told_and_the_conversation_goes_on(repl, server):
    for line, answer in (
        ("/shw", "did you mean /show?"),
        ("/set parameter temprature 1", "did you mean temperature?"),
        ("/set parameter temperature hot", "must be of type float32"),
        ("/set parameter", "use /set parameter NAME VALUE"),
        ("/show", "use /show info"),
        ("/load nowhere", "model 'nowhere' not found"),
    ):
        repl.line(line)
        repl.expect(answer)
    repl.line("Hi")
    repl.expect("Hello wörld")
    repl.line("/bye")
    assert repl.wait()[0] == 0
    assert server.chats()[0]["model"] == "tiny"


def test_show_list_help_clear_and_load(repl, server):
    server.models.append("other:latest")
    repl.line("/show info")
    repl.expect("134.52M")
    repl.line("/show template")
    repl.expect("{{ prompt }}")
    repl.line("/list")
    repl.expect("0123456789ab")
    repl.line("/?")
    repl.expect("/set parameter NAME VALUE")
    repl.line("Hi")
    repl.expect("Hello wörld")
    repl.line("/clear")
    repl.expect("Cleared")
    repl.line("Again")
    repl.expect("Hello wörld")
    repl.line("/load other")
    repl.expect("Loaded 'other'.")
    repl.line("Third")
    repl.expect("Hello wörld")
    repl.line("/bye")
    repl.wait()
    assert [len(chat["messages"]) for chat in server.chats()] == [1, 1, 1]
    assert server.chats()[2]["model"] == "other"


def test_what_was_typed_is_kept_for_the_owner_alone(repl, tmp_path):
    repl.line("Remember me")
    repl.expect("Hello wörld")
    repl.line("/bye")
    repl.wait()
    history = tmp_path / ".corral" / "history"
    assert "Remember me" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_pull_draws_a_bar_on_a_terminal(terminal, server):
    code, text = terminal("pull", "other", server=server).wait()
    assert code == 0
    assert "pulling 0123456789ab" in text and "100%" in text and "━" in text
    assert text.rstrip().endswith("success")


def test_no_color_is_respected(terminal, server):
    terminal_ = terminal("pull", "other", server=server, NO_COLOR="1")
    assert terminal_.wait()[0] == 0
    assert b"\x1b[3" not in terminal_.raw and b"\x1b[9" not in terminal_.raw
    assert "100%" in terminal_.text


def test_one_shot_on_a_terminal_asks_once(terminal, server):
    code, text = terminal("run", "tiny", "Hi", server=server).wait()
    assert code == 0 and text == "Hello wörld\n"
