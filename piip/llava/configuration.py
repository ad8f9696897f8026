"""The description of a PIIP-LLaVA as a configuration of transformers."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from piip.config import PIIPConfig
from piip.errors import ConfigError, nearest
from piip.hf import PiipConfig
from piip.network import build_on_meta

OPTIONS = ("projector_norm", "out_grid", "keep_aspect_ratio", "tie_word_embeddings")
"""Fields that may be chosen; LLaVA's others, such as the layer whose features are taken, do not exist here."""


@strict
class PiipLlavaConfig(LlavaConfig):
    """A PIIP network that sees, a projector per branch, and a language model (SPEC 9; arXiv 2501.07783).

    Args:
        vision_config: The network, a `PiipConfig` with one map per branch.
        text_config: Any causal language model of transformers.
        projector_norm: ``group`` normalises over the map (released models), ``layer`` every token.
        out_grid: Height and width in tokens of every image; by default that of the branch with the largest image.
        keep_aspect_ratio: Images are shown in their own aspect ratio, with as many tokens as they need, and not as
            the squares that released models know.
    """

    model_type = "piip_llava"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="piip"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projector_norm: Literal["group", "layer"] = "group"
    out_grid: list[int] | tuple[int, int] | None = None
    keep_aspect_ratio: bool = False
    vision_feature_select_strategy: Literal["default", "full"] = "full"
    vision_feature_layer: int | list[int] = -1

    @classmethod
    def of(cls, network: PIIPConfig, text: PreTrainedConfig, image_token_id: int, **options: Any) -> Self:
        """Return the configuration of a network before a language model.

        Args:
            network: One map per branch: ``merging.kind`` is ``none``.
            text: The language model, its vocabulary with the image token.
            image_token_id: Token in whose places the features of images stand.
            options: Some of `OPTIONS`, or fields of any configuration of transformers.

        Raises:
            ConfigError: The network merges its branches, the language model's vocabulary has no such token, or an
                option is unknown or impossible.
        """
        _check_options(options)
        _check_token(image_token_id, getattr(text, "vocab_size", None))
        if network.merging.kind != "none":
            raise ConfigError(
                f"The network merges its branches (merging.kind is {network.merging.kind!r}); projectors read "
                "every branch, set it to 'none' with pyramid_levels ()."
            )
        settings = cls(
            vision_config=PiipConfig.of(network),
            text_config=text,
            image_token_index=image_token_id,
            **options,
        )
        settings.image_seq_length = settings.tokens_of(network.image_size, network.image_size)
        return settings

    @property
    def vision(self) -> PiipConfig:
        """The network's configuration."""
        assert isinstance(self.vision_config, PiipConfig)
        return self.vision_config

    @property
    def text(self) -> Any:
        """The language model's configuration."""
        return self.text_config

    def token_stride(self) -> float:
        """Return the pixels per token of the branch with the largest image."""
        return build_on_meta(self.vision.network_config()).strides[-1]

    def tokens_of(self, height: int, width: int) -> int:
        """Return the number of tokens of an image of a size in pixels."""
        if self.out_grid is not None:
            return int(self.out_grid[0] * self.out_grid[1])
        stride = int(self.token_stride())
        return (height // stride) * (width // stride)

    def size_multiple(self) -> int:
        """Return the number of pixels whose multiples, as sides of an image, give all branches whole tokens."""
        return build_on_meta(self.vision.network_config().replace(size_divisor=None)).size_divisor

    def smallest_side(self) -> int:
        """Return the smallest multiple of `size_multiple` in which every branch has a token."""
        network = build_on_meta(self.vision.network_config())
        scales = network.config.scales()
        needed = [max(network.branch(i).strides) / scale for i, scale in enumerate(scales)]
        multiple = self.size_multiple()
        return math.ceil(max(needed) / multiple - 1e-9) * multiple


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what transformers would keep without a word, and grids without tokens."""
    known = [*OPTIONS, *(field.name for field in dataclasses.fields(PreTrainedConfig))]
    for name in options:
        if name not in known:
            raise ConfigError(f"A PIIP-LLaVA has no option {name!r}. {nearest(name, known)}")
    grid = options.get("out_grid")
    if grid is not None and not _is_grid(grid):
        raise ConfigError(f"out_grid is {grid!r}; give its height and width in tokens, such as (24, 24).")


def _is_grid(grid: object) -> bool:
    sides = list(grid) if isinstance(grid, Iterable) else []
    return len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)


def _check_token(image_token_id: object, rows: int | None) -> None:
    """Refuse a token of images that the language model, with an embedding of some rows, cannot read."""
    known = isinstance(image_token_id, int) and image_token_id >= 0
    if not known:
        raise ConfigError(
            f"The image token is {image_token_id!r}; add one to the tokenizer and give its number: "
            "tokenizer.convert_tokens_to_ids('<image>')."
        )
    if rows is not None and image_token_id >= rows:  # type: ignore[operator]
        raise ConfigError(
            f"The image token is number {image_token_id}, but the language model's vocabulary has {rows} tokens; "
            "call llm.resize_token_embeddings(len(tokenizer)) first."
        )
