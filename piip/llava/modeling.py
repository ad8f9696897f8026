"""PIIP-LLaVA as a model of transformers (SPEC 9).

What follows the features of images (their places among the tokens, the cache, generation, losses) is LLaVA's own.
"""

import copy
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, BitsAndBytesConfig, LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from piip.hf import PiipModel
from piip.llava.configuration import PiipLlavaConfig
from piip.tasks.multimodal.projector import PyramidProjector

UNQUANTIZED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
"""What stays in full precision when the language model is loaded in 8 or 4 bits: a small share of the memory, whose
errors would reach every answer."""

IGNORED = -100
"""Label of tokens that are not learnt."""


class PiipLlavaModel(LlavaModel):
    """A PIIP network, a projector per branch, and a language model without its head.

    Args:
        config: Its description.
    """

    config_class = PiipLlavaConfig
    config: PiipLlavaConfig

    def __init__(self, config: PiipLlavaConfig) -> None:
        super(LlavaModel, self).__init__(config)  # LLaVA's own tower and projector are not built
        self.vision_tower = PiipModel(config.vision)
        side = self.vision_tower.network.config.image_size
        self._empty_side = config.smallest_side() if config.keep_aspect_ratio else side
        self.multi_modal_projector: Any = new_projector(config, self.vision_tower.network.out_channels)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **options: Any
    ) -> Any:
        """Return what LLaVA's does, and train with or without images alike.

        Without one, an empty image is seen whose features count nothing. All parameters then have gradients in
        every step, if zero, and FSDP gathers the same weights everywhere: processes whose samples have no image
        would otherwise wait for the others forever.
        """
        seen = pixel_values is not None or options.get("mm_encoder_outputs")
        if self._learns and not seen and input_ids is not None:
            embeddings = self.get_input_embeddings()(input_ids)
            nothing = self._see_nothing(max(self._most_looks(0), 1))
            options["inputs_embeds"] = embeddings + nothing.to(embeddings)
            input_ids = None
        return super().forward(input_ids=input_ids, pixel_values=pixel_values, **options)

    def _see_nothing(self, times: int) -> Tensor:
        """Return zero, computed from all of the tower and the projector some times over."""
        device = next(self.vision_tower.parameters()).device
        empty = torch.zeros(1, 3, self._empty_side, self._empty_side, device=device)
        zero = torch.zeros((), device=device)
        for _ in range(times):
            zero = zero + (0 * self._look(empty)[0]).sum()
        return zero

    def _most_looks(self, looks: int) -> int:
        """Return the most looks of any process in this step, asked before the first one.

        Images of several sizes take several looks. FSDP gathers weights in each, so all processes need as many.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.config.keep_aspect_ratio and distributed and self._learns):
            return looks
        most = torch.tensor(looks, device=next(self.vision_tower.parameters()).device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    @property
    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _look(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the features (B, tokens, D) and the maps of images of one size (B, 3, H, W)."""
        maps = self.vision_tower.network(pixels.to(next(self.vision_tower.parameters()).dtype))
        return self.multi_modal_projector(maps), maps

    def get_image_features(
        self,
        pixel_values: Tensor,
        return_dict: bool = True,
        image_sizes: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Return the features of images for the language model.

        Args:
            pixel_values: (B, 3, H, W).
            return_dict: Whether the output is an object or a tuple.
            image_sizes: (B, 2) height and width of every image, at the top left of its pixels; by default all of
                them. Images of one size are seen together.
            options: Not used; LLaVA's choice of layers.

        Returns:
            An output whose ``pooler_output`` is a list of B tensors (tokens, D), and whose ``hidden_states`` are
            the maps (B, D_i, H_i, W_i) of the branches, where all images have one size.
        """
        features: Any = [None] * len(pixel_values)
        maps: Any = None
        whole = [pixel_values.shape[-2:]] * len(pixel_values)
        groups = groups_of_equals(map(tuple, whole if image_sizes is None else image_sizes.tolist()))
        most = self._most_looks(len(groups))
        for (height, width), places in groups.items():
            found, maps = self._look(pixel_values[places, :, :height, :width])
            for place, feature in zip(places, found, strict=True):
                features[place] = feature
        if most > len(groups):
            features[0] = features[0] + self._see_nothing(most - len(groups)).to(features[0])
        seen = tuple(maps) if len(groups) == 1 else None
        output = BaseModelOutputWithPooling(pooler_output=features, hidden_states=seen)
        return output if return_dict else output.to_tuple()


def new_projector(config: PiipLlavaConfig, dims: Sequence[int]) -> PyramidProjector:
    """Return a random projector of a model.

    Args:
        config: The model's.
        dims: Width of every branch's map.
    """
    grid = config.out_grid
    return PyramidProjector(
        dims,
        config.text.hidden_size,
        config.projector_norm,
        None if grid is None else (int(grid[0]), int(grid[1])),
    )


class PiipLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """A PIIP-LLaVA that answers.

    Args:
        config: Its description.
    """

    config_class = PiipLlavaConfig
    config: PiipLlavaConfig

    def __init__(self, config: PiipLlavaConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = PiipLlavaModel(config)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load a saved model as transformers does.

        A `BitsAndBytesConfig` that does not say itself what stays in full precision leaves out `UNQUANTIZED`.
        """
        chosen = options.get("quantization_config")
        if isinstance(chosen, BitsAndBytesConfig) and chosen.llm_int8_skip_modules is None:
            options["quantization_config"] = chosen = copy.copy(chosen)
            chosen.llm_int8_skip_modules = list(UNQUANTIZED)
        return super().from_pretrained(*arguments, **options)

    def answer_logits(self, labels: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Return what is predicted where something is to be learnt, and nowhere else.

        The loss of `forward` is the cross entropy of the two. It computes logits for every token first: of a
        thousand tokens of an image for each of 32,000 words, which is most of the memory of a training step.

        Args:
            labels: (B, L) tokens, -100 where nothing is learnt.
            inputs: ``input_ids``, ``attention_mask`` and ``pixel_values``, as for `forward`.

        Returns:
            Logits (M, vocabulary) float32 and labels (M).
        """
        hidden = self.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        learnt = labels[:, 1:] != IGNORED
        return self.lm_head(hidden[learnt]).float(), labels[:, 1:][learnt]


def groups_of_equals(values: Iterable[Hashable]) -> dict[Any, list[int]]:
    """Return the places of every value, in the order of first places."""
    groups: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault(value, []).append(place)
    return groups
