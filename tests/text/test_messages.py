"""Messages as templates read them, and cut to a number of bytes."""

from conversations import said, typed
from corral.text.messages import Message, Text, Thought, message_dict, tool_dict

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": ["it"]}}}
PLAIN = {
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "well", "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "seen", "name": "look", "tool_call_id": "c1"},
    ],
    "tools": [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"a": 1}}}],
}


def unchanged(value):
    return value


def test_messages_and_tools_have_the_form_that_templates_read():
    arguments = typed(PLAIN)
    assert [message_dict(message, unchanged) for message in arguments["messages"]] == PLAIN["messages"]
    assert [tool_dict(tool, unchanged) for tool in arguments["tools"]] == PLAIN["tools"]


def test_every_string_of_a_conversation_is_cleaned_and_no_role_or_key():
    seen = []

    def clean(value):
        seen.append(value)
        return "x" if isinstance(value, str) else {"cleaned": True}

    dicts = [message_dict(message, clean) for message in typed(PLAIN)["messages"]]
    assert [message["role"] for message in dicts] == ["user", "assistant", "tool"]
    function = {"name": "x", "arguments": {"cleaned": True}}
    call = {"id": "x", "type": "function", "function": function}
    assert dicts[1] == {"role": "assistant", "content": "x", "reasoning_content": "x", "tool_calls": [call]}
    assert dicts[2] == {"role": "tool", "content": "x", "name": "x", "tool_call_id": "x"}
    assert {"hi", "well", "hm", "c1", "look", "seen"} <= {value for value in seen if isinstance(value, str)}


def test_last_bytes_keep_whole_characters_of_the_end():
    message = said("user", "aé日")
    assert message.size == 6
    assert message.last_bytes(6) is message
    assert [message.last_bytes(count).text for count in (5, 4, 3, 2, 0, -9)] == [
        "é日",
        "日",
        "日",
        "",
        "",
        "",
    ]


def test_message_cut_to_its_last_bytes_says_and_thinks_no_more():
    message = Message("assistant", (Thought("x" * 10), Text("yes")))
    assert (message.size, message.text) == (13, "yes")
    assert message.last_bytes(5) == said("assistant", "yes")
