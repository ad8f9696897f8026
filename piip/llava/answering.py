"""A PIIP-LLaVA that is asked: load it, show it images, read the answer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from PIL import Image
from torch import Tensor
from transformers import TextStreamer

from piip.data.conversations import IMAGE_MARK
from piip.errors import CheckpointError, ConfigError, DataError
from piip.hub import find_folder, is_llava
from piip.llava.explaining import Explanation, explain
from piip.llava.loading import fast_dtype, in_bits, load_model, load_processor
from piip.llava.messages import ChatForm, begun, count_added
from piip.llava.modeling import PiipLlavaForConditionalGeneration
from piip.llava.processing import PiipLlavaProcessor
from piip.predict import choose_device, read_pixels

if TYPE_CHECKING:
    from piip.predict import Picture

MAX_NEW_TOKENS = 256

Role = Literal["user", "assistant", "system"]


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says.

    Attributes:
        role: Who says it; ``system``, first of all, sets the tone instead of the template's own words.
        text: What is said; of a turn with several images, ``<image>`` may say where each of them stands.
        images: What is shown with it, before the text if that does not say otherwise.
    """

    role: Role
    text: str
    images: tuple[Image.Image, ...] = ()

    def marked(self) -> str:
        """Return the text with a mark for every image, as training data have it."""
        if IMAGE_MARK in self.text:
            return self.text
        return "\n".join([*[IMAGE_MARK] * len(self.images), *filter(None, [self.text])])


class Answerer:
    """A PIIP-LLaVA with everything that it needs to be asked; it always gives the likeliest answer.

    Args:
        model: The model, on the device where it runs.
        processor: What prepares texts and images; its tokenizer pads on the left from now on.
    """

    def __init__(self, model: PiipLlavaForConditionalGeneration, processor: PiipLlavaProcessor) -> None:
        self.model: Any = model.eval()
        self.processor: Any = processor
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # answers begin where prompts end
        if tokenizer.pad_token is None:  # Llama's has none
            tokenizer.pad_token = tokenizer.eos_token

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | torch.device = "auto",
        revision: str | None = None,
        bits: int | None = None,
        **options: Any,
    ) -> Self:
        """Load a saved model and its processor.

        Args:
            source: The folder that both were saved in, a run folder, or ``owner/name`` on the Hugging Face Hub.
            device: Where it runs; ``auto`` takes a GPU if there is one.
            revision: Branch, tag or commit of the repository on the Hub.
            bits: 8 or 4 to load the language model quantised by bitsandbytes.
            options: Further arguments of transformers' ``from_pretrained``, such as ``attn_implementation`` or
                ``dtype``; without that it is the dtype in which the model was saved, or float32 on CPUs that
                cannot calculate with that one, if memory suffices.

        Raises:
            CheckpointError: There is no PIIP-LLaVA, it is damaged, or its processor is missing.
            ConfigError: The device is not there, or ``bits`` is another number.
            MissingExtraError: bitsandbytes is needed and not installed.
        """
        folder = find_folder(source, revision)
        if not is_llava(folder):
            raise CheckpointError(f"{folder} holds no PIIP-LLaVA; give the folder of a saved one.")
        place = choose_device(device)
        if bits is not None:
            options["quantization_config"] = in_bits(bits)
        dtype = "auto" if "quantization_config" in options else fast_dtype(folder, place)
        options = {"dtype": dtype, "device_map": {"": place}} | options
        return cls(load_model(folder, options), load_processor(folder))

    def answer(
        self,
        images: "Picture | Sequence[Picture]",
        prompt: str,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: Callable[[str], object] | None = None,
    ) -> str:
        """Return the answer to a question about images.

        Args:
            images: One image or several, each of a kind that `piip.Predictor.predict` takes.
            prompt: The question.
            max_new_tokens: Where an answer is cut off.
            stream: Called with each piece of the answer as it comes; joined and stripped, they are the answer.

        Raises:
            DataError: An image cannot be read, or the prompt is no text or contains marks that do not fit the
                images, see `Turn`.
            ConfigError: The question is longer than what the language model reads.
        """
        return self.answer_all([[Turn("user", prompt, as_pictures(images))]], max_new_tokens, stream)[0]

    def explain(
        self,
        image: "Picture",
        prompt: str,
        answer: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Explanation:
        """Return where in an image the answer to a question came from.

        Args:
            image: Of a kind that `piip.Predictor.predict` takes.
            prompt: The question.
            answer: An answer to ask about; the model's own by default.
            max_new_tokens: Where the model's own is cut off.

        Raises:
            DataError: The image cannot be read, the prompt contains the mark of an image, or there is no answer.
            ConfigError: The question is longer than what the language model reads.
        """
        turn = Turn("user", prompt, as_pictures(image))
        asked = self.render([turn])
        said: Tensor | str
        if answer is None:
            said = self._without_end(self._generate([[turn]], max_new_tokens)[0])
        else:
            said = self._as_written(turn, asked, answer.strip())
        return explain(self.model, self.processor, turn.images[0], asked, said)

    def answer_all(
        self,
        conversations: Sequence[Sequence[Turn]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: Callable[[str], object] | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Return what follows each conversation; all are answered at once, shorter ones padded on the left.

        Args:
            conversations: Turns, the last of them the user's.
            max_new_tokens: Where an answer is cut off.
            stream: As for `answer`; of one conversation only.
            stop: Texts before which an answer ends.

        Raises:
            DataError: A conversation is not one, see `render`.
            ConfigError: Several conversations are to be streamed, one is longer than what the model reads,
                ``max_new_tokens`` is no whole number above 0, or the chat template is unfit.
        """
        if stream is not None and len(conversations) != 1:
            raise ConfigError(f"Only one answer can be streamed, not {len(conversations)}; leave stream out.")
        if not conversations:
            return []
        said = self._generate(conversations, max_new_tokens, stream, stop)
        texts = self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [_before(text, stop).strip() for text in texts]

    def _generate(
        self,
        conversations: Sequence[Sequence[Turn]],
        max_new_tokens: int,
        stream: Callable[[str], object] | None = None,
        stop: Sequence[str] = (),
    ) -> Tensor:
        """Return the tokens (B, L) that follow each conversation."""
        length: Any = max_new_tokens
        if not isinstance(length, Integral) or int(length) < 1:
            raise ConfigError(f"max_new_tokens is {length!r}; give a whole number above 0.")
        inputs = self._inputs(conversations, max_new_tokens)
        tokenizer = self.processor.tokenizer
        ends = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
        with torch.inference_mode():
            output: Tensor = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                synced_gpus=False,  # a sharded model is whole while it is asked: nobody waits for others
                pad_token_id=tokenizer.pad_token_id,
                streamer=None if stream is None else _Streamer(tokenizer, stream, stop),
                **ends,
            )
        return output[:, inputs["input_ids"].shape[1] :]

    def _without_end(self, said: Tensor) -> Tensor:
        """Return the tokens of an answer without the special ones that ended it."""
        special = set(self.processor.tokenizer.all_special_ids)
        words = [index for index, token in enumerate(said.tolist()) if token not in special]
        return said[: words[-1] + 1 if words else 0]

    def losses(
        self, conversations: Sequence[Sequence[Turn]], answers: Sequence[str]
    ) -> list[tuple[float, bool]]:
        """Return how unlikely given answers are.

        Args:
            conversations: Turns, the last of them the user's.
            answers: What is said next in each, exactly as it follows the prompt, with its space.

        Returns:
            For each: the mean negative log likelihood of the answer's tokens, and whether each of them is the
            likeliest.

        Raises:
            DataError: A conversation is not one, see `render`, or an answer is empty.
            ConfigError: A conversation is longer than what the model reads, or the chat template is unfit.
        """
        if not conversations:
            return []
        prompts = [self.render(conversation) for conversation in conversations]
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        tokenizer = self.processor.tokenizer
        counts = [count_added(tokenizer, *pair) for pair in zip(prompts, texts, strict=True)]
        if 0 in counts:
            raise DataError("An answer is empty; leave it out.")
        inputs = self._tokenize(texts, conversations, 0)
        places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self.model(
                **inputs, position_ids=places, logits_to_keep=max(counts) + 1, use_cache=False
            ).logits
        found = []
        for row, tokens, count in zip(logits, inputs["input_ids"], counts, strict=True):
            answer, likely = tokens[-count:], row[-count - 1 : -1].float().log_softmax(-1)
            loss = -likely.gather(1, answer[:, None]).mean()
            found.append((float(loss), bool((likely.argmax(-1) == answer).all())))
        return found

    def render(self, conversation: Iterable[Turn]) -> str:
        """Return a conversation as the text that the model continues, a mark in place of each image.

        It is the text that training has up to an answer: an only image stands before the text of its turn.

        Raises:
            DataError: There is no turn, the last one is not the user's, a role is unknown, a text is none, its
                marks of images are not those of the turn's images, or the system speaks later than first.
            ConfigError: There is no chat template, or an unfit one.
        """
        turns = list(conversation)
        _check(turns, self.processor.image_token)
        return self._write(turns, prompt=True)

    def _write(self, turns: Iterable[Turn], prompt: bool) -> str:
        form = ChatForm.of(self.processor)
        return form.write([form.message(turn.role, turn.marked()) for turn in turns], prompt)[0]

    def _as_written(self, turn: Turn, asked: str, answer: str) -> str:
        """Return an answer as the chat template writes it behind its prompt: often with a space before it."""
        reply = Turn("assistant", answer)
        _check_turn(reply, self.processor.image_token)
        written = self._write([turn, reply], prompt=False).removeprefix(asked)
        space = written[: len(written) - len(written.lstrip())]
        return space + answer if answer and written.startswith(space + answer) else answer

    def _inputs(self, conversations: Sequence[Sequence[Turn]], max_new_tokens: int) -> Any:
        texts = [self.render(conversation) for conversation in conversations]
        return self._tokenize(texts, conversations, max_new_tokens)

    def _tokenize(
        self, texts: list[str], conversations: Sequence[Sequence[Turn]], max_new_tokens: int
    ) -> Any:
        """Return what the model reads of texts with the images of conversations, padded on the left."""
        images = [image for turns in conversations for turn in turns for image in turn.images]
        inputs = self.processor(
            images=images or None,
            text=texts,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not begun(self.processor.tokenizer, texts[0]),  # all are of one template
        )
        length, limit = inputs["input_ids"].shape[1], self._limit
        if limit is not None and length + max_new_tokens > limit:
            raise ConfigError(
                f"The conversation has {length} tokens and its answer up to {max_new_tokens}, but the language "
                f"model reads {limit}; show fewer images, start anew, or lower max_new_tokens."
            )
        return inputs.to(self.model.device)

    @property
    def _limit(self) -> int | None:
        return getattr(self.model.config.text, "max_position_embeddings", None)


def _check(turns: Sequence[Turn], image_token: str) -> None:
    """Refuse what is no conversation that the user has ended."""
    for turn in turns:
        _check_turn(turn, image_token)
    if any(turn.role == "system" for turn in turns[1:]):
        raise DataError("A turn of the system can only be the first one of a conversation; move it there.")
    if not turns or turns[-1].role != "user":
        found = f"ends with a turn of the {turns[-1].role}" if turns else "has no turn"
        raise DataError(f"A conversation {found}; end it with a turn of the user.")


def _check_turn(turn: Turn, image_token: str) -> None:
    if turn.role not in get_args(Role):
        raise DataError(f"A turn is from {turn.role!r}; make it one of {', '.join(get_args(Role))}.")
    if not isinstance(turn.text, str):
        raise DataError(f"The text of a turn is of type {type(turn.text).__name__}; give a str.")
    marks = turn.text.count(IMAGE_MARK)
    placed = marks > 1 and marks == len(turn.images)
    if (marks and not placed) or (image_token != IMAGE_MARK and image_token in turn.text):
        raise DataError(
            f"A text contains {image_token!r}, which stands for an image; leave it out, images are given on their "
            "own (only of several images, a mark for each may say where it stands)."
        )


def as_pictures(images: "Picture | Sequence[Picture]") -> tuple[Image.Image, ...]:
    """Return one image or several, of any kind, as RGB pictures.

    Raises:
        DataError: One cannot be read or is no RGB image.
    """
    several: Any = images if isinstance(images, list | tuple) else [images]
    return tuple(Image.fromarray(read_pixels(image)[0].movedim(0, -1).numpy()) for image in several)


def _before(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of some others in it."""
    return text[: min((text.index(mark) for mark in stop if mark in text), default=len(text))]


class _Streamer(TextStreamer):
    """Hands over each piece of text as soon as no further token can change it or begin a text that ends it."""

    def __init__(self, tokenizer: Any, receive: Callable[[str], object], stop: Sequence[str]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._receive = receive
        self._stop = stop
        self._text = ""
        self._handed = 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand over a piece; transformers calls this."""
        self._text += text
        said = _before(self._text, self._stop)
        if len(said) == len(self._text) and not stream_end:
            said = said[: len(said) - _open_end(said, self._stop)]
        piece = said[self._handed :]
        if piece:
            self._handed += len(piece)
            self._receive(piece)


def _open_end(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of one of some others."""
    lengths = range(min(len(text), max(map(len, stop), default=1) - 1), 0, -1)
    return next((n for n in lengths if any(mark.startswith(text[-n:]) for mark in stop)), 0)
