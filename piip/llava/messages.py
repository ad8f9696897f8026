"""Messages as chat templates read them, the same in training and when a model is asked.

A turn with exactly one image has it first, on a line of its own, as LLaVA 1.5 was trained; several images stay
where they stand. `CHAT_TEMPLATE` has the same rule for contents in parts, which is how transformers itself asks.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

from transformers.utils.chat_template_utils import render_jinja_template

from piip.data.conversations import IMAGE_MARK
from piip.errors import ConfigError

Message = dict[str, Any]
Span = tuple[int, int]  # of characters

_PROBE = "answer-7391"


class ChatForm:
    """A chat template, and whether it reads contents as plain texts or in parts.

    Args:
        template: Jinja, as transformers defines it.
        tokenizer: Its special tokens are the template's variables.
        image_token: What stands for an image in the text.

    Raises:
        ConfigError: The template cannot be rendered or shows no answers.
    """

    def __init__(self, template: str, tokenizer: Any, image_token: str = IMAGE_MARK) -> None:
        self.template = template
        self.image_token = image_token
        self._variables: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self.message: Callable[[str, str], Message] = self._plain_message
        # Some templates fail on plain texts, others show nothing of them.
        with contextlib.suppress(ConfigError):
            if self._shows_answers():
                return
        self.message = self._message_in_parts
        if not self._shows_answers():
            raise ConfigError(
                "The chat template leaves answers out; give one that renders 'assistant' turns."
            )

    @classmethod
    def of(cls, processor: Any) -> Self:
        """Return the form of a processor's own template.

        Raises:
            ConfigError: It has none, or an unfit one.
        """
        template = template_of(processor)
        if not template:
            raise ConfigError("The processor has no chat template; give it one, such as CHAT_TEMPLATE.")
        return cls(template, processor.tokenizer, processor.image_token)

    def write(
        self, messages: Sequence[Message], prompt: bool = False, spans: bool = False
    ) -> tuple[str, list[Span]]:
        """Return messages as text and, if asked for, where ``{% generation %}`` marks are.

        Args:
            messages: What ``message(role, text)`` returned, with `IMAGE_MARK` in the text for every image.
            prompt: Whether the beginning of an answer follows.
            spans: Whether to look for marks.

        Raises:
            ConfigError: The template cannot be rendered.
        """
        if not messages:
            return "", []
        try:
            found: Any = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=spans,
                **self._variables,
            )
        except Exception as error:  # Jinja's, or whatever a template raises of its own accord
            raise ConfigError(f"The chat template cannot be rendered: {error}.") from error
        return found[0][0], list(found[1][0]) if spans else []

    def _shows_answers(self) -> bool:
        turns = [self.message("user", "question"), self.message("assistant", _PROBE)]
        return _PROBE in self.write(turns)[0]

    def _plain_message(self, role: str, text: str) -> Message:
        return {"role": role, "content": arrange(text).replace(IMAGE_MARK, self.image_token)}

    def _message_in_parts(self, role: str, text: str) -> Message:
        """Return a message as templates of multimodal models want it; they say themselves what an image is."""
        parts: list[dict[str, str]] = []
        for number, piece in enumerate(arrange(text).split(IMAGE_MARK)):
            parts += [{"type": "image"}] * (number > 0)
            piece = piece.removeprefix("\n") if number else piece  # lines are the template's business
            parts += [{"type": "text", "text": piece}] * bool(piece)
        return {"role": role, "content": parts}


def template_of(processor: Any) -> str | None:
    """Return the chat template of a processor or else of its tokenizer; of several, the default one."""
    template = processor.chat_template or processor.tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def arrange(text: str) -> str:
    """Return a turn with its only image first, on its own line; several stay where they are."""
    if text.count(IMAGE_MARK) != 1:
        return text
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()


def begun(tokenizer: Any, text: str) -> bool:
    """Return whether a template has written the special token that the tokenizer would put before a text."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def count_added(tokenizer: Any, prompt: str, text: str) -> int:
    """Return how many tokens at the end of ``text`` differ from those of its beginning ``prompt``."""
    before, after = tokenizer([prompt, text], add_special_tokens=not begun(tokenizer, prompt))["input_ids"]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    return len(after) - len(list(same))
