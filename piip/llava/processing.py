"""Turning conversations and images into what a PIIP-LLaVA reads."""

from collections.abc import Mapping
from typing import Any, Self

from transformers import LlavaProcessor
from transformers.processing_utils import MultiModalData

from piip.errors import ConfigError
from piip.llava.configuration import PiipLlavaConfig
from piip.llava.images import WholeImageProcessor, image_processor

IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{% macro joined(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% set text = namespace(begun=false) %}{% for part in content %}"
    "{% if part['type'] == 'image' %}{{ '<image>' if text.begun or loop.last else '<image>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% set text.begun = true %}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "{% macro words(content) %}{% set text = joined(content) %}"
    "{% if text.count('<image>') == 1 %}{{ ('<image>\\n' + text.replace('<image>', '').strip()).strip() }}"
    "{% else %}{{ text }}{% endif %}{% endmacro %}"
    "{% if messages and messages[0]['role'] == 'system' %}{{ words(messages[0]['content']) + ' ' }}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + words(message['content']) + ' ' }}"
    "{% elif message['role'] != 'system' %}"
    "ASSISTANT:{% generation %}{{ ' ' + words(message['content']) + eos_token }}{% endgeneration %}"
    "{% elif not loop.first %}{{ raise_exception('A system message can only be the first one.') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Vicuna's form of a conversation, in which the released models were trained; a system message takes the place of
its first two sentences. An only image of a turn comes first, as `piip.llava.messages.arrange` has it; several stand
where they are, those before the text on lines of their own."""


class PiipLlavaProcessor(LlavaProcessor):
    """An image processor and a tokenizer; every image stands for as many tokens as the model makes of it.

    Args:
        image_processor: Prepares images; `image_processor` makes the released one, `WholeImageProcessor` keeps
            their aspect ratio. Both read files and pictures as piip does.
        tokenizer: Knows the image token; it pads on the left from now on.
        patch_size: Pixels per token of the largest image.
        out_grid: Height and width in tokens, where the model fixes it.
        chat_template: Jinja template of conversations.
        image_token: What stands for an image in a text.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        out_grid: list[int] | tuple[int, int] | None = None,
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        **options: Any,
    ) -> None:
        self.out_grid = out_grid
        options.pop("vision_feature_select_strategy", None)
        options.pop("num_additional_image_tokens", None)
        tokenizer.padding_side = "left"  # answers begin where prompts end, also in a batch
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy="full",
            chat_template=chat_template,
            image_token=image_token,
            **options,
        )

    @classmethod
    def of(cls, config: PiipLlavaConfig, tokenizer: Any, chat_template: str = CHAT_TEMPLATE) -> Self:
        """Return the processor of a model.

        Args:
            config: The model's.
            tokenizer: The language model's, with the image token.
            chat_template: Jinja template of conversations.

        Raises:
            ConfigError: Images are to keep their aspect ratio, but the branches divide only squares into tokens.
        """
        side = config.vision.network_config().image_size
        return cls(
            _whole_images(config, side) if config.keep_aspect_ratio else image_processor(side),
            tokenizer,
            patch_size=int(config.token_stride()),
            out_grid=config.out_grid,
            chat_template=chat_template,
        )

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **options: Any) -> str:
        """Return the tokens that stand for one image."""
        sizes = image_inputs.get("image_sizes")
        shape = image_inputs["pixel_values"][image_idx].shape if sizes is None else sizes[image_idx]
        height, width = (int(pixels) for pixels in shape[-2:])
        return str(self.image_token * self._tokens_of(height, width))

    def _tokens_of(self, height: int, width: int) -> int:
        """Return the number of tokens of a prepared image."""
        if self.out_grid is not None:
            return int(self.out_grid[0] * self.out_grid[1])
        return (height // self.patch_size) * (width // self.patch_size)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **options: Any) -> MultiModalData:
        """Return the tokens of images of some sizes (height, width); inference servers ask for them."""
        if image_sizes is None:
            return MultiModalData()
        shown = [self._size_of(int(height), int(width)) for height, width in image_sizes]
        counts = [self._tokens_of(*size) for size in shown]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))

    def _size_of(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.image_processor, WholeImageProcessor):
            return self.image_processor.size_of(height, width)
        crop = self.image_processor.crop_size
        return int(crop["height"]), int(crop["width"])


def _whole_images(config: PiipLlavaConfig, side: int) -> WholeImageProcessor:
    multiple, smallest = config.size_multiple(), config.smallest_side()
    if side % multiple or side < smallest:
        raise ConfigError(
            f"The network has images of {side} pixels, no multiple of the {multiple} that all its branches divide "
            "into whole tokens; leave keep_aspect_ratio out."
        )
    return WholeImageProcessor(side=side, size_multiple=multiple, smallest_side=smallest)
