"""PIIP-LLaVA as a model of transformers (SPEC 9).

What follows the features of images (their places among the tokens, the cache, generation, losses) is LLaVA's own.
"""

import copy
from collections.abc import Hashable, Iterable
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
        grid = config.out_grid
        self.multi_modal_projector: Any = PyramidProjector(
            self.vision_tower.network.out_channels,
            config.text.hidden_size,
            config.projector_norm,
            None if grid is None else (int(grid[0]), int(grid[1])),
        )
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
        learning = self.training and torch.is_grad_enabled()
        seen = pixel_values is not None or options.get("mm_encoder_outputs")
        if learning and not seen and input_ids is not None:
            embeddings = self.get_input_embeddings()(input_ids)
            options["inputs_embeds"] = embeddings + self._nothing_seen().to(embeddings)
            input_ids = None
        return super().forward(input_ids=input_ids, pixel_values=pixel_values, **options)

    def _nothing_seen(self) -> Tensor:
        """Return zero, computed from all of the tower and the projector."""
        side = self.vision_tower.network.config.image_size
        empty = torch.zeros(1, 3, side, side, device=next(self.vision_tower.parameters()).device)
        (features,) = self.get_image_features(empty).pooler_output
        return (0 * features).sum()

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
        pixels = pixel_values.to(self._vision_dtype)
        features: Any = [None] * len(pixels)
        maps: Any = None
        sizes = [pixels.shape[-2:]] * len(pixels) if image_sizes is None else image_sizes.tolist()
        groups = groups_of_equals(tuple(size) for size in sizes)
        for (height, width), places in groups.items():
            maps = self.vision_tower.network(pixels[places, :, :height, :width])
            for place, feature in zip(places, self.multi_modal_projector(maps), strict=True):
                features[place] = feature
        seen = tuple(maps) if len(groups) == 1 else None
        output = BaseModelOutputWithPooling(pooler_output=features, hidden_states=seen)
        return output if return_dict else output.to_tuple()

    @property
    def _vision_dtype(self) -> torch.dtype:
        return next(self.vision_tower.parameters()).dtype


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


def groups_of_equals(values: Iterable[Hashable]) -> dict[Any, list[int]]:
    """Return the places of every value, in the order of first places."""
    groups: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault(value, []).append(place)
    return groups
