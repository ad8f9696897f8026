"""Writing a conversation in a model's own form, and finding the answers in it again.

Only answers are learnt, so their places in the text must be known exactly, whatever the chat template puts around
them. Two ways lead there, and neither searches for the answers' words:

- A template with ``{% generation %}`` marks says itself what the model writes.
- Otherwise the conversation is rendered turn by turn. What an answer adds to the prompt before it is that answer
  with its end of sequence.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from piip.data.conversations import IMAGE_MARK, Conversation
from piip.errors import ConfigError
from piip.llava.messages import ChatForm, Span

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<image>' * message['content'].count('<image>') }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
)
"""Images and what is said of them, no questions: LLaVA's form of captions while only projectors are trained."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: With one image token for every image.
        answers: Where the answers are, their ends of sequence included.
    """

    text: str
    answers: tuple[Span, ...]


class AnswerFinder:
    """Renders conversations by a chat template and finds the answers.

    Args:
        template: Jinja, as transformers defines it.
        tokenizer: Its special tokens are the template's variables.
        image_token: What stands for an image in the text.

    Raises:
        ConfigError: The template cannot be rendered or shows no answers.
    """

    def __init__(self, template: str, tokenizer: Any, image_token: str = IMAGE_MARK) -> None:
        self._form = ChatForm(template, tokenizer, image_token)
        self._end: str = tokenizer.eos_token or ""
        self._marked = bool(_MARKED.search(template))

    def render(self, conversation: Conversation) -> Rendered:
        """Return a conversation as text with the places of its answers.

        Raises:
            ConfigError: The template writes a turn differently once others follow.
        """
        messages = [self._form.message(turn.role, turn.text) for turn in conversation.turns]
        if self._marked:
            text, spans = self._form.write(messages, spans=True)
            return Rendered(text, tuple(self._with_end(text, start, end) for start, end in spans))
        text, _ = self._form.write(messages)
        answered = [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant"]
        return Rendered(text, tuple(self._span(text, messages, index) for index in answered))

    def _span(self, text: str, messages: Sequence[dict[str, Any]], index: int) -> Span:
        """Return the place of answer ``index``: from the end of its prompt to its end of sequence."""
        asked = self._form.write(messages[:index])[0]
        prompt = self._form.write(messages[:index], prompt=True)[0]
        so_far = self._form.write(messages[: index + 1])[0]
        # A prompt may open something that answers in training data lack, such as a place for thoughts.
        start = _shared(prompt, so_far)
        if start < len(asked) or not text.startswith(so_far):
            raise ConfigError(
                "The chat template writes a turn differently once others follow, so answers cannot be told from "
                "prompts; mark them with {% generation %} in the template."
            )
        last = so_far.rfind(self._end, start) if self._end else -1
        return start, len(so_far) if last < 0 else last + len(self._end)

    def _with_end(self, text: str, start: int, end: int) -> Span:
        """Return a marked answer with the end of sequence that follows it: not every template marks that too."""
        follows = bool(self._end) and text.startswith(self._end, end)
        return start, end + len(self._end) * follows


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    if other.startswith(one):  # nearly always, and much faster
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def expand(rendered: Rendered, image_token: str, replacements: Sequence[str]) -> Rendered:
    """Return a conversation with every image token replaced, the answers' places moved along.

    Args:
        rendered: With one image token for every image.
        image_token: What stands for an image.
        replacements: What stands there instead, for every image.

    Raises:
        ConfigError: The template has left out images or shown them twice.
    """
    pieces = rendered.text.split(image_token)
    if len(pieces) - 1 != len(replacements):
        raise ConfigError(
            f"The chat template shows {len(pieces) - 1} images of a sample that has {len(replacements)}; it must "
            f"write {image_token} once for each."
        )
    text, marks = pieces[0], [(0, 0)]  # position in the text as rendered, and how far what follows has moved
    for piece, replacement in zip(pieces[1:], replacements, strict=True):
        position = len(text) - marks[-1][1] + len(image_token)
        text += replacement + piece
        marks.append((position, marks[-1][1] + len(replacement) - len(image_token)))
    starts = [position for position, _ in marks]

    def moved(position: int) -> int:
        return position + marks[bisect_right(starts, position) - 1][1]

    return Rendered(text, tuple((moved(start), moved(end)) for start, end in rendered.answers))
