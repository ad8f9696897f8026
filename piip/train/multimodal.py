"""Training a PIIP-LLaVA: projectors alone, everything, or the language model by LoRA (SPEC 9, 16.4)."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from piip.data.conversation_layout import find_file, holds_conversations
from piip.data.conversations import IMAGE_MARK, ConversationFile
from piip.data.length_sampler import LengthGroupedBatchSampler
from piip.data.sampler import Key
from piip.errors import ConfigError
from piip.hub import find_folder, is_llava
from piip.llava.answering import Answerer
from piip.llava.answers import PLAIN_TEMPLATE
from piip.llava.assembly import assemble, describe_llava, unmerged
from piip.llava.configuration import PiipLlavaConfig
from piip.llava.dataset import ConversationCollator, ConversationDataset
from piip.llava.drawing import draw_answer
from piip.llava.learning import add_lora, learn_parts, merge_lora
from piip.llava.likelihood import AnswerCount, answer_scores, count_answers
from piip.llava.loading import load_processor, save_llava
from piip.llava.modeling import PiipLlavaForConditionalGeneration
from piip.llava.processing import CHAT_TEMPLATE, PiipLlavaProcessor
from piip.llava.questions import LeftOut, Question, answer_questions, read_questions, score
from piip.meta import on_meta
from piip.network import PIIP
from piip.train.building import network_config
from piip.train.data import TaskData
from piip.train.module import TrainingModule
from piip.train.recipe import TrainRecipe
from piip.train.samples import spread
from piip.train.settings import LanguageConfig
from piip.train.task import Task


def describe_model(recipe: TrainRecipe) -> tuple[PiipLlavaConfig, PiipLlavaProcessor]:
    """Return the configuration and the processor of the model that a recipe trains; no weight is read.

    Raises:
        ConfigError: The recipe names no network or no language model, or one that does not exist.
        CheckpointError: The model to start from is damaged.
    """
    settings, start = recipe.language, recipe.model.start
    folder = find_folder(start) if start is not None else None
    if folder is not None and is_llava(folder) and not recipe.model.new_head:
        config, processor = PiipLlavaConfig.from_pretrained(folder), load_processor(folder)
        _refuse_new_form(recipe, config, processor)
        return config, processor
    if not settings.model:
        raise ConfigError(
            "The recipe names no language model; give language.model, a folder or a name on the Hub, or go on from "
            "a PIIP-LLaVA with model.start."
        )
    return describe_llava(
        network_config(recipe),
        settings.model,
        settings.chat,
        projector_norm=settings.projector_norm,
        out_grid=settings.out_grid,
        keep_aspect_ratio=settings.keep_aspect_ratio,
    )


def _refuse_new_form(recipe: TrainRecipe, config: PiipLlavaConfig, processor: PiipLlavaProcessor) -> None:
    """Refuse settings of a new model that are not those of the one that is there."""
    usual, grid = LanguageConfig(), config.out_grid
    own: dict[str, Any] = {
        "projector_norm": config.projector_norm,
        "out_grid": None if grid is None else tuple(grid),
        "keep_aspect_ratio": config.keep_aspect_ratio,
        "chat": "vicuna" if processor.chat_template == CHAT_TEMPLATE else "own",
    }
    for name, there in own.items():
        value = getattr(recipe.language, name)
        if value not in (there, getattr(usual, name)):
            raise ConfigError(
                f"language.{name} is {value!r}, but {recipe.model.start} is a whole PIIP-LLaVA with {there!r}; "
                "remove the setting, or take its network alone with model.new_head."
            )


def outline(config: PiipLlavaConfig, recipe: TrainRecipe) -> PiipLlavaForConditionalGeneration:
    """Return the model that a recipe trains, on the meta device, with what is learnt and recomputed.

    Args:
        config: Of the model, as `describe_model` returns it.
        recipe: The run.
    """
    with on_meta():
        model = PiipLlavaForConditionalGeneration(config)
        model.model.vision_tower.network.set_grad_checkpointing(recipe.trainer.grad_checkpointing)
        MultimodalTask.prepare(model, recipe)
    return model.train()


class QuestionDataset(Dataset[Question]):
    """Questions as a data set.

    Args:
        questions: What is asked.
    """

    def __init__(self, questions: list[Question]) -> None:
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, key: Key) -> Question:
        """Return a question; of a key (epoch, index) only the index matters."""
        return self.questions[key[1]]


class MultimodalData(TaskData):
    """Loaders of conversations, and of the conversations or questions that are evaluated.

    Attributes:
        processor: Of the model that is trained.
        form: Form of the questions that are evaluated; None where they are conversations.
    """

    train_set: ConversationDataset
    val_set: Any

    def read(self) -> None:
        """Read conversations and questions."""
        recipe, data = self.recipe, self.recipe.data
        train, val = find_file(data.folder, data.train), find_file(data.folder, data.val)
        self.config, self.processor = describe_model(recipe)
        self.train_set = self._conversations(train)
        self.form: str | None = None
        if holds_conversations(val):
            self.val_set = self._conversations(val, replace=False)
            return
        images = data.images or self.train_set.conversations.folder
        self.form, questions = read_questions(val, images)
        self.val_set = QuestionDataset(questions)

    def questions(self) -> list[Question]:
        """Return what is evaluated as questions: of a conversation with one image, the first question."""
        if self.form is not None:
            return self.val_set.questions
        conversations: ConversationFile = self.val_set.conversations
        found = []
        for index in np.flatnonzero(conversations.image_counts == 1).tolist():
            conversation = conversations[index]
            asked, truth = (turn.text for turn in conversation.turns[:2])
            image = conversations.folder / conversation.images[0]
            found.append(Question(index, image, asked.replace(IMAGE_MARK, "").strip(), (truth,)))
        return found

    def warn_of_losses(self) -> None:
        """Say once which conversations were cut, replaced or left out."""
        for dataset in (self.train_set, self.val_set):
            if isinstance(dataset, ConversationDataset):
                dataset.warn_of_losses()

    def _conversations(self, path: Path, replace: bool = True) -> ConversationDataset:
        settings = self.recipe.language
        template = PLAIN_TEMPLATE if settings.captions else None
        found = ConversationFile(path, self.recipe.data.images)
        return ConversationDataset(found, self.processor, settings.max_length, template, replace)

    @property
    def classes(self) -> tuple[str, ...]:
        """None: answers are words."""
        return ()

    def collate(self, items: Any) -> Any:  # type: ignore[override]
        """Pad conversations; questions stay as they are."""
        if isinstance(items[0], Question):
            return items
        return ConversationCollator(self.processor.tokenizer.pad_token_id)(items)

    def train_sampler(self, **options: Any) -> LengthGroupedBatchSampler:
        """Return batches of conversations of like lengths, all with images or all without."""
        return LengthGroupedBatchSampler(self.train_set.lengths, self.train_set.groups, **options)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch of conversations."""
        if isinstance(batch, list):
            return batch
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


class MultimodalModule(TrainingModule):
    """A PIIP-LLaVA with the loss of its answers, and the scores of what it answers.

    Checkpoints hold what is learnt; everything else comes back from where it was loaded.

    Args:
        model: The model.
        recipe: The run.
        data: Its loaders.
    """

    model: PiipLlavaForConditionalGeneration

    def __init__(
        self, model: PiipLlavaForConditionalGeneration, recipe: TrainRecipe, data: MultimodalData
    ) -> None:
        super().__init__(model, recipe)
        self.strict_loading = False
        self._data = data

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the cross entropy of the answers' tokens."""
        logits, labels = self.model.answer_logits(**batch)
        return {"loss_answer": F.cross_entropy(logits, labels)}

    def evaluate_batch(self, batch: Any) -> list[Any]:
        """Return the answers to questions, or what the model thinks of true answers."""
        if isinstance(batch, list):
            settings = self.recipe.language
            answerer = Answerer(self.model, self._data.processor)
            asked = answer_questions(
                answerer, batch, settings.instruction, settings.max_new_tokens, len(batch)
            )
            return list(zip(batch, asked, strict=True))
        return [count_answers(self.model, batch)]

    def score(self, evaluated: list[Any]) -> tuple[dict[str, Any], dict[str, float], float]:
        """Return the scores; the accuracy decides, of conversations the loss."""
        form: Any = self._data.form
        if form is None:
            scores = answer_scores(AnswerCount(*count) for count in evaluated)
            metric = -scores["loss"]
        else:
            scores = score(form, *zip(*evaluated, strict=True))
            metric = scores["accuracy"]
        numbers = {f"val/{name}": value for name, value in scores.items() if name not in _COUNTS}
        return {"answers": scores}, numbers, metric

    def headline(self) -> str:
        """Return the accuracy of the answers, of conversations their loss too."""
        scores = self.scores["answers"]
        if "loss" in scores:
            return f"answers: loss {scores['loss']:.3f}, {100 * scores['accuracy']:.1f} % of tokens right"
        return f"accuracy {100 * scores['accuracy']:.1f} % of {scores['questions']} questions"

    def on_train_epoch_end(self) -> None:
        """Say once what was cut, replaced or left out."""
        self._data.warn_of_losses()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is not learnt: of a first stage, all but 20 of 7,000 million parameters."""
        fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in fixed}

    def configure_model(self) -> None:
        """Shard the model where the strategy is FSDP."""
        super().configure_model()
        if self._sharded:
            from torch.distributed.fsdp import register_fsdp_forward_method

            register_fsdp_forward_method(self.model, "answer_logits")


_COUNTS = ("questions", "tokens")


class MultimodalTask(Task):
    """Answers about images by a PIIP-LLaVA."""

    model = PiipLlavaForConditionalGeneration
    data = MultimodalData
    module = MultimodalModule
    network_changes: ClassVar[Mapping[str, Any]] = {"merging": {"kind": "none", "pyramid_levels": ()}}

    @staticmethod
    def new_model(
        network: nn.Module, recipe: TrainRecipe, classes: tuple[str, ...]
    ) -> PiipLlavaForConditionalGeneration:
        """Return a model of a network, a pretrained language model and new projectors."""
        assert isinstance(network, PIIP)
        config, _ = describe_model(recipe)
        return assemble(config, unmerged(network), recipe.language.model, _language_dtype(recipe))

    @staticmethod
    def without_weights(recipe: TrainRecipe, data: TaskData) -> nn.Module:
        """Return the model in memory that nothing has been written to, which takes none."""
        assert isinstance(data, MultimodalData)
        model = outline(data.config, recipe).to_empty(device="cpu")
        model.tie_weights()
        return model

    @classmethod
    def check_head(cls, network: nn.Module, recipe: TrainRecipe) -> None:
        """Do nothing: the language model is looked at with the data, whose tokens are its own."""

    @staticmethod
    def prepare(model: nn.Module, recipe: TrainRecipe) -> None:
        """Choose what is learnt, and recompute the language model's layers too where that is asked for."""
        assert isinstance(model, PiipLlavaForConditionalGeneration)
        settings = recipe.language
        model.model.language_model.to(_language_dtype(recipe))
        model.lm_head.to(_language_dtype(recipe))
        if settings.lora_rank:
            add_lora(model, settings.lora_rank, settings.lora_alpha, settings.lora_dropout)
        learn_parts(model, settings.learn)
        network = model.model.vision_tower.network
        network.freeze(network.frozen | set(recipe.model.freeze))
        if recipe.trainer.grad_checkpointing is True:
            model.model.language_model.activation_checkpointing_enable()

    @staticmethod
    def metadata(recipe: TrainRecipe, data: TaskData) -> dict[str, Any]:
        """Return nothing: the processor is saved with the model."""
        return {}

    @classmethod
    def save(cls, model: nn.Module, folder: Path, recipe: TrainRecipe, data: TaskData) -> None:
        """Save model and processor as transformers does, low-rank matrices merged."""
        assert isinstance(model, PiipLlavaForConditionalGeneration)
        assert isinstance(data, MultimodalData)
        merge_lora(model)
        # A saved model has one precision: that of its language model, unless more was learnt.
        model.to(next(model.lm_head.parameters()).dtype)
        save_llava(model, data.processor, folder)

    @staticmethod
    def draw_samples(model: nn.Module, data: TaskData, folder: Path, count: int) -> None:
        """Draw a few validation images with the question, the answer and what is true.

        Those that cannot be asked about are left out with a warning: the run is finished.
        """
        assert isinstance(model, PiipLlavaForConditionalGeneration)
        assert isinstance(data, MultimodalData)
        settings, chosen = data.recipe.language, spread(data.questions(), count)
        instruction = settings.instruction if data.form else ""
        asked = answer_questions(
            Answerer(model, data.processor), chosen, instruction, settings.max_new_tokens
        )
        for number, (question, answer) in enumerate(zip(chosen, asked, strict=True)):
            if isinstance(answer, LeftOut):
                warnings.warn(f"A sample is not drawn, question {question.id}: {answer.reason}", stacklevel=2)
            else:
                draw_answer(question, answer, folder / f"{number}_{question.image.stem}.png")


def _language_dtype(recipe: TrainRecipe) -> torch.dtype:
    """Return the precision of the language model's own weights.

    Half of the memory is enough for what is not learnt; sharded models have one precision.
    """
    settings = recipe.language
    learnt = "language" in settings.learn and not settings.lora_rank
    halved = recipe.trainer.precision == "bf16" and recipe.trainer.strategy != "fsdp" and not learnt
    return torch.bfloat16 if halved else torch.float32
