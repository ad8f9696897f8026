"""``piip chat``."""

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from piip.cli.console import console
from piip.cli.llava import load_answerer
from piip.errors import DataError, PiipError, nearest

if TYPE_CHECKING:
    from piip.llava import Chat

HELP = """/image PATH  show an image with your next question
/history     print what was said so far
/reset       forget everything that was shown and said
/help        this text
/quit        leave; Ctrl-D and Ctrl-C do, too
Ctrl-C while an answer is coming stops the answer. Anything else you type is a question."""
_PROMPT = "> "


def chat_with(
    model: str,
    image: Path | None = None,
    max_new_tokens: int = 512,
    device: str = "auto",
    bits: int | None = None,
) -> None:
    """Talk with a PIIP-LLaVA in the terminal.

    Answers appear word by word. /image PATH shows an image with the next question, /reset starts anew, /history
    prints what was said, /help lists all of these, and /quit or Ctrl-D leaves. Ctrl-C stops an answer; at the
    prompt, it leaves.

    Args:
        model: The folder of a saved PIIP-LLaVA, a run, or owner/name on the Hugging Face Hub.
        image: An image to begin with.
        max_new_tokens: Where an answer is cut off.
        device: Where the model runs: auto, cpu, cuda, cuda:1, mps.
        bits: 8 or 4 to load the language model quantised, in half or a third of the memory.
    """
    answerer = load_answerer(model, device, bits)
    from piip.llava import Chat

    session = Session(Chat(answerer, max_new_tokens))
    if image is not None:
        session.show_image(str(image))
    with contextlib.suppress(
        ImportError
    ):  # lines can be edited and called back with the arrow keys, not on Windows
        importlib.import_module("readline")
    _say("Ask something; /help shows what else there is.\n")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while session.take(input(_PROMPT)):
            pass
    _say("\n")


class Session:
    """What a chat in the terminal does with each line.

    Args:
        chat: The conversation.
    """

    def __init__(self, chat: "Chat") -> None:
        self.chat = chat
        self.commands: dict[str, Callable[[str], object]] = {
            "/image": self.show_image,
            "/history": self._print_history,
            "/reset": self._reset,
            "/help": lambda _: _say(f"{HELP}\n"),
        }

    def take(self, line: str) -> bool:
        """Do what a line says, print what comes of it, and return whether the chat goes on.

        Errors that the user can mend are printed.
        """
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return False
        try:
            if word.startswith("/"):
                self._command(word)(rest.strip())
            elif word:
                self._ask(line.strip())
        except PiipError as error:
            _say(f"{' '.join(str(error).split())}\n")
        return True

    def show_image(self, path: str) -> None:
        """Show an image with the next question.

        Raises:
            DataError: There is no path, or the image cannot be read.
        """
        if not path:
            raise DataError("Name an image: /image PATH.")
        self.chat.add_image(Path(path.strip("\"'")).expanduser())
        _say(f"{path} is shown with your next question.\n")

    def _command(self, word: str) -> Callable[[str], object]:
        if word not in self.commands:
            raise DataError(f"There is no {word}. {nearest(word, [*self.commands, '/quit'])}")
        return self.commands[word]

    def _ask(self, question: str) -> None:
        try:
            self.chat.ask(question, stream=_say)
        except KeyboardInterrupt:
            _say(" ... stopped; Ctrl-C once more leaves")
        _say("\n")

    def _reset(self, _: str) -> None:
        self.chat.reset()
        _say("Everything is forgotten.\n")

    def _print_history(self, _: str) -> None:
        for turn in self.chat.turns:
            _say(f"{turn.role}: {'[image] ' * len(turn.images)}{turn.text}\n")


def _say(text: str) -> None:
    console().out(text, end="", highlight=False)
