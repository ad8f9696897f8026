"""PIIP-LLaVA as a model of transformers (SPEC 9).

What follows the features of images (their places among the tokens, the cache, generation, losses) is LLaVA's own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from piip.hf import PiipModel
from piip.llava.configuration import PiipLlavaConfig
from piip.tasks.multimodal.projector import PyramidProjector


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
