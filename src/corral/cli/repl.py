"""The interactive prompt of `corral run`."""

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from corral.cli.chat import Chat, print_statistics, write
from corral.cli.exits import OK, UsageError
from corral.cli.list import models_table
from corral.cli.models import ServerModels
from corral.cli.show import PARTS, facts
from corral.errors import CorralError
from corral.server.dialects.ollama_options import OPTIONS

QUOTES = '"""'
HELP = """\
  /set parameter NAME VALUE   set a sampling option, like temperature 0.2
  /set system TEXT            set the system message
  /set verbose | quiet        print times after each reply, or do not
  /show info | license | modelfile | parameters | system | template
  /load MODEL                 talk to another model, from the beginning
  /list                       the models in the store
  /clear                      forget the conversation
  /?  /help                   this
  /bye                        leave (or Ctrl-D)

Begin and end a message of several lines with \"\"\". Ctrl-C stops a reply."""


class _Leave(Exception):
    """The user wants to leave the prompt."""


class Repl:
    """Reads messages and commands, and carries them out, until the user leaves."""

    def __init__(self, chat: Chat, history: Path, *, verbose: bool = False):
        self.chat, self.verbose = chat, verbose
        self.models = ServerModels(chat.client)
        self.session: PromptSession[str] = PromptSession(history=_history(history))
        self.commands: dict[str, Callable[[str], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/list": self._list,
            "/clear": self._clear,
            "/?": self._help,
            "/help": self._help,
            "/bye": self._bye,
            "/exit": self._bye,
        }

    def run(self) -> int:
        """Talk until the user leaves; returns the exit code."""
        self.chat.load()
        while True:
            try:
                line = self._read()
                if line.startswith("/") and not line.startswith("//"):
                    self._command(line)
                elif line:
                    self._say(line)
            except (_Leave, EOFError):
                return OK
            except CorralError as error:
                print(f"error: {error}", file=sys.stderr)

    def _read(self) -> str:
        """Read a message: a line, or several between triple quotes."""
        try:
            line = self.session.prompt(">>> ", placeholder=_grey("Send a message (/? for help)")).strip()
            if line.count(QUOTES) % 2:
                lines = [line]
                while QUOTES not in lines[-1] or len(lines) == 1:
                    lines.append(self.session.prompt("... ", placeholder=_grey(f"{QUOTES} ends the message")))
                line = "\n".join(lines)
        except KeyboardInterrupt:
            print("Use Ctrl + d or /bye to exit.")
            return ""
        return line.replace(QUOTES, "").strip()

    def _say(self, text: str) -> None:
        try:
            final = self.chat.say(text, write)
        except KeyboardInterrupt:
            print("\n")
            return
        except CorralError:
            write("\n")
            raise
        print("\n")
        if self.verbose:
            print_statistics(final)

    def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word not in self.commands:
            near = difflib.get_close_matches(word, self.commands, n=1)
            raise UsageError(
                f"there is no {word}; " + (f"did you mean {near[0]}?" if near else "type /? for help")
            )
        self.commands[word](rest.strip())

    def _set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        if what == "parameter":
            self._set_parameter(value)
        elif what == "system" and value:
            self.chat.system = value.strip()
            print("Set system message.")
        elif what in ("verbose", "quiet"):
            self.verbose = what == "verbose"
            print(f"Set '{what}' mode.")
        else:
            raise UsageError("use /set parameter NAME VALUE, /set system TEXT, /set verbose or /set quiet")

    def _set_parameter(self, rest: str) -> None:
        name, *values = rest.split() or [""]
        if name not in OPTIONS or not values:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = (
                f"did you mean {near[0]}?" if near and near[0] != name else f"known are {', '.join(OPTIONS)}"
            )
            raise UsageError(f"use /set parameter NAME VALUE; {hint}")
        self.chat.options[name] = _typed(name, values)
        print(f"Set parameter '{name}' to '{' '.join(values)}'")

    def _show(self, rest: str) -> None:
        answer = self.models.show(self.chat.model, verbose=False)
        if rest == "info":
            print(facts(answer) + "\n")
        elif rest == "system" and self.chat.system:
            print(self.chat.system)
        elif rest in PARTS:
            print(str(answer.get(rest) or f"The model has no {rest}.").rstrip())
            if rest == "parameters" and self.chat.options:
                print(
                    "Set here:", *(f"  {name} {value}" for name, value in self.chat.options.items()), sep="\n"
                )
        else:
            raise UsageError(f"use /show info or /show {' | '.join(PARTS)}")

    def _load(self, rest: str) -> None:
        if not rest:
            raise UsageError("use /load MODEL")
        before, self.chat.model = self.chat.model, rest
        try:
            self.chat.load()
        except CorralError:
            self.chat.model = before
            raise
        self.chat.messages.clear()
        print(f"Loaded '{rest}'.")

    def _list(self, rest: str) -> None:
        print(models_table(self.models.list()))

    def _clear(self, rest: str) -> None:
        self.chat.messages.clear()
        print("Cleared session context.")

    def _help(self, rest: str) -> None:
        print(HELP)

    def _bye(self, rest: str) -> None:
        raise _Leave


def _grey(text: str) -> HTML:
    return HTML(f"<ansibrightblack>{text}</ansibrightblack>")


def _typed(name: str, values: list[str]) -> Any:
    kind = OPTIONS[name][0]
    try:
        if kind == "array":
            return values
        if kind == "boolean":
            return {"true": True, "false": False}[values[0].lower()]
        return int(values[0]) if kind == "integer" else float(values[0])
    except (ValueError, KeyError):
        raise UsageError(f"{name} must be of type {kind}, not '{values[0]}'") from None


def _history(path: Path) -> History:
    """The history of messages in a file that only its owner reads; in memory if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
