"""PIIP-LLaVA as a model of lmms-eval, which finds it by itself as ``--model piip_llava``.

    python -m lmms_eval --model piip_llava --model_args pretrained=FOLDER --tasks pope --batch_size 8

lmms-eval knows two forms of tasks: conversations, its default, and questions with images before them. Tasks that
compare the likelihoods of choices, such as ``seedbench_ppl``, have only the second, chosen by ``--force_simple``.
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from transformers.utils.logging import tqdm

from piip.errors import ConfigError, DataError
from piip.llava import Answerer, Turn
from piip.llava.answering import MAX_NEW_TOKENS, as_pictures

MODEL_NAME = "piip_llava"


class PiipLlavaSimple(lmms):
    """A PIIP-LLaVA that reads a question and the images before it.

    It always gives the likeliest answer, whatever temperature a task sets. Under ``accelerate launch`` every
    process has a model on a device of its own.

    Args:
        pretrained: What `Answerer.load` takes: a folder, a run folder, or ``owner/name`` on the Hugging Face Hub.
        revision: Branch, tag or commit of the repository on the Hub.
        device: Where it runs; by default a GPU if there is one.
        dtype: Precision, such as ``bfloat16``; by default that of the weights.
        batch_size: Questions answered at once.
        max_new_tokens: Where an answer is cut off if the task does not say.
        system_prompt: What every conversation begins with instead of the chat template's own words, or a file with
            it.
        max_batch_size: Not used; lmms-eval hands it over.
        options: Further arguments of transformers' ``from_pretrained``, such as ``attn_implementation``.

    Raises:
        CheckpointError: There is no PIIP-LLaVA, it is damaged, or its processor is missing.
        ConfigError: The device is not there, or ``batch_size`` is no number above 0.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_new_tokens: int = MAX_NEW_TOKENS,
        system_prompt: str = "",
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ConfigError(f"batch_size is {batch_size}; give a number above 0.")
        self.accelerator = Accelerator()
        self.device: torch.device = torch.device(device) if device else self.accelerator.device
        self.batch_size = int(batch_size)
        self.max_new_tokens = int(max_new_tokens)
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self._system = self._resolve_system_prompt(system_prompt)
        self._answerer: Answerer | None = Answerer.load(
            pretrained, self.device, revision, dtype=dtype, **options
        )

    @property
    def answerer(self) -> Answerer:
        """Who answers."""
        assert self._answerer is not None, "lmms-eval cleaned it away"
        return self._answerer

    @property
    def chat_template(self) -> str:
        """The template of conversations, which lmms-eval notes with its results."""
        return str(self.answerer.processor.chat_template)

    def clean(self) -> None:
        """Free the memory of the model; lmms-eval calls this before it scores answers."""
        self._answerer = None
        super().clean()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers to requests of lmms-eval."""
        answers = [""] * len(requests)
        every = [request.args for request in requests]
        for settings, group in self._batches(every, [self._settings(args) for args in every]):
            conversations = [self._begin(self._conversation(every[index])) for index in group]
            stop = _as_list(settings.get("until"))
            length = int(settings.get("max_new_tokens") or self.max_new_tokens)
            said = self.answerer.answer_all(conversations, length, stop=stop)
            for index, answer in zip(group, said, strict=True):
                answers[index] = answer
                self.cache_hook.add_partial("generate_until", (every[index][0], settings), answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list["_Loss"]:
        """Return the loss of given answers, and whether each is the likeliest one.

        lmms-eval's other models return the loss in place of the likelihood, too, and its multiple choice takes the
        smallest.
        """
        found = [_Loss((0.0, False))] * len(requests)
        every = [request.args for request in requests]
        for _, group in self._batches(every, [{}] * len(every)):
            conversations = [self._begin(self._asked(*_without_target(every[index]))) for index in group]
            targets = [self._target(every[index]) for index in group]
            for index, loss in zip(group, self.answerer.losses(conversations, targets), strict=True):
                found[index] = _Loss(loss)
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: rounds that depend on answers are not supported.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{MODEL_NAME} answers tasks of one round only; leave this task out.")

    def _settings(self, args: tuple[Any, ...]) -> Mapping[str, Any]:
        return dict(args[1])

    def _conversation(self, args: tuple[Any, ...]) -> list[Turn]:
        return self._asked(args[0], *args[2:])

    def _asked(self, context: str, *where: Any) -> list[Turn]:
        """Return a question, after the images of a document where there is one.

        Args:
            context: The question.
            where: What finds a document's images, its number, task and split.
        """
        images: Sequence[Any] = ()
        if where:
            find, number, task, split = where
            images = find(self.task_dict[task][split][number]) or ()
        # Some tasks write the mark of an image into the text; here images always stand before it, as in training.
        text = context.replace(self.answerer.processor.image_token, "").strip()
        return [Turn("user", text, _pictures(images))]

    def _target(self, args: tuple[Any, ...]) -> str:
        target = args[1]
        return str(target(self.task_dict[args[4]][args[5]][args[3]]) if callable(target) else target)

    def _begin(self, turns: list[Turn]) -> list[Turn]:
        if self._system and turns[0].role != "system":
            return [Turn("system", self._system), *turns]
        return turns

    def _batches(
        self, every: Sequence[tuple[Any, ...]], settings: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[Mapping[str, Any], list[int]]]:
        """Yield settings and which requests have them, at most ``batch_size`` at once, long questions first."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index in sorted(range(len(every)), key=lambda index: -len(str(every[index][0]))):
            groups[json.dumps(settings[index], sort_keys=True, default=str)].append(index)
        with tqdm(total=len(every), disable=self.rank != 0, desc="Answering") as bar:
            for indices in groups.values():
                _warn_of_sampling(settings[indices[0]])
                for start in range(0, len(indices), self.batch_size):
                    group = indices[start : start + self.batch_size]
                    yield settings[group[0]], group
                    bar.update(len(group))


class PiipLlavaChat(PiipLlavaSimple):
    """A PIIP-LLaVA that reads conversations; for the rest see `PiipLlavaSimple`."""

    is_simple = False

    def _settings(self, args: tuple[Any, ...]) -> Mapping[str, Any]:
        return dict(args[2])

    def _conversation(self, args: tuple[Any, ...]) -> list[Turn]:
        _, find, _, number, task, split = args
        mark = self.answerer.processor.image_token
        return [_turn(message, mark) for message in find(self.task_dict[task][split][number])]


class _Loss(tuple, GenerationResult):
    """A loss and whether its answer is the likeliest.

    lmms-eval 0.7.3 turns every result that is neither text nor a `GenerationResult` into text, pairs too, and then
    cannot compare them.
    """

    def __init__(self, pair: tuple[float, bool]) -> None:  # a tuple is filled before
        pass

    @property
    def text(self) -> tuple[Any, ...]:
        """The pair itself."""
        return tuple(self)


def manifest() -> ModelManifest:
    """Return what lmms-eval needs to know; its entry point group ``lmms_eval.models`` calls this."""
    return ModelManifest(
        MODEL_NAME,
        simple_class_path=f"{__name__}.{PiipLlavaSimple.__name__}",
        chat_class_path=f"{__name__}.{PiipLlavaChat.__name__}",
    )


def _turn(message: Mapping[str, Any], mark: str) -> Turn:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text").replace(mark, "")
    shown = [part["url"] for part in parts if part["type"] != "text"]
    return Turn(message["role"], text.strip(), _pictures(shown))


def _pictures(shown: Sequence[Any]) -> tuple[Image.Image, ...]:
    """Return what a document shows as RGB pictures.

    Raises:
        DataError: It is no image, but a video or a sound.
    """
    for item in shown:
        if not isinstance(item, Image.Image | str):
            raise DataError(
                f"{MODEL_NAME} reads images and no {type(item).__name__}; choose a task of images and text."
            )
    return as_pictures([item.convert("RGB") if isinstance(item, Image.Image) else item for item in shown])


def _without_target(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0], *args[2:])


def _as_list(until: Any) -> list[str]:
    marks = until if isinstance(until, list | tuple) else [until]
    return [str(mark) for mark in marks if mark not in (None, "")]


def _warn_of_sampling(settings: Mapping[str, Any]) -> None:
    if settings.get("do_sample") or (settings.get("num_beams") or 1) > 1:
        warnings.warn(
            f"The task asks for samples or beams ({dict(settings)}); {MODEL_NAME} gives the likeliest token "
            "instead.",
            stacklevel=4,
        )
