"""PIIP-LLaVA as a model of transformers (SPEC 9).

What follows the features of images (their places among the tokens, the cache, generation, losses) is LLaVA's own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from piip.hf import PiipModel
from piip.llava.configuration import PiipLlavaConfig
from piip.tasks.multimodal.projector import PyramidProjector

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

    def get_image_features(self, pixel_values: Tensor, return_dict: bool = True, **options: Any) -> Any:
        """Return the features of images (B, 3, H, W) for the language model.

        Returns:
            An output whose ``pooler_output`` is a list of B tensors (tokens, D), and whose ``hidden_states`` are
            the maps (B, D_i, H_i, W_i) of the branches.
        """
        maps = self.vision_tower.network(pixel_values.to(self._vision_dtype))
        features: Any = list(self.multi_modal_projector(maps))
        output = BaseModelOutputWithPooling(pooler_output=features, hidden_states=tuple(maps))
        return output if return_dict else output.to_tuple()

    @property
    def _vision_dtype(self) -> torch.dtype:
        return next(self.vision_tower.parameters()).dtype


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
