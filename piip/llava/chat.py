"""A conversation with a PIIP-LLaVA that goes on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from piip.llava.answering import MAX_NEW_TOKENS, Answerer, Turn, as_pictures

if TYPE_CHECKING:
    from piip.predict import Picture


class Chat:
    """A conversation that goes on: the model sees all that was shown and said before.

    Args:
        answerer: Who answers.
        max_new_tokens: Where an answer is cut off.

    Attributes:
        turns: What was said so far.
    """

    def __init__(self, answerer: Answerer, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.answerer = answerer
        self.max_new_tokens = max_new_tokens
        self.reset()

    def reset(self) -> None:
        """Forget everything, images too."""
        self.turns: list[Turn] = []
        self._shown: list[Image.Image] = []

    def add_image(self, image: "Picture") -> None:
        """Show an image with the next question.

        Raises:
            DataError: The image cannot be read.
        """
        self._shown += as_pictures(image)

    def ask(self, prompt: str, stream: Callable[[str], object] | None = None) -> str:
        """Return the answer to a question, and keep both for the next one.

        An answer that is stopped by Ctrl-C is kept as far as it came; after any other error nothing has changed.

        Args:
            prompt: The question.
            stream: As for `Answerer.answer`.

        Raises:
            DataError: The prompt contains the mark of an image.
            ConfigError: The conversation is longer than what the language model reads.
            KeyboardInterrupt: The answer was stopped.
        """
        question = Turn("user", prompt, tuple(self._shown))
        pieces: list[str] = []

        def take(piece: str) -> None:
            pieces.append(piece)
            if stream is not None:
                stream(piece)

        try:
            [answer] = self.answerer.answer_all([[*self.turns, question]], self.max_new_tokens, take)
        except KeyboardInterrupt:
            if pieces:
                self._keep(question, "".join(pieces).strip())
            raise
        self._keep(question, answer)
        return answer

    def _keep(self, question: Turn, answer: str) -> None:
        self.turns += [question, Turn("assistant", answer)]
        self._shown = []
