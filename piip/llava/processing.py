"""Turning conversations and images into what a PIIP-LLaVA reads."""

from typing import Any, Self

from transformers import LlavaProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from piip.data.settings import IMAGENET_MEAN, IMAGENET_STD
from piip.llava.configuration import PiipLlavaConfig

IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{% macro words(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{% endmacro %}"
    "{% if messages and messages[0]['role'] == 'system' %}{{ words(messages[0]['content']) + ' ' }}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% endif %}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% endif %}"
    "{{ words(message['content']) }}"
    "{{ ' ' if message['role'] == 'user' else eos_token }}"
    "{% elif not loop.first %}{{ raise_exception('A system message can only be the first one.') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Vicuna's form of a conversation, in which the released models were trained; a system message takes the place of
its first two sentences."""


class PiipLlavaProcessor(LlavaProcessor):
    """An image processor and a tokenizer; every image stands for as many tokens as the model makes of it.

    Args:
        image_processor: Prepares images; `image_processor` makes the released one.
        tokenizer: Knows the image token.
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
        """
        side = config.vision.network_config().image_size
        return cls(
            image_processor(side),
            tokenizer,
            patch_size=int(config.token_stride()),
            out_grid=config.out_grid,
            chat_template=chat_template,
        )

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **options: Any) -> str:
        """Return the tokens that stand for one image."""
        if self.out_grid is not None:
            return str(self.image_token * (self.out_grid[0] * self.out_grid[1]))
        return str(super().replace_image_token(image_inputs, image_idx, **options))


def image_processor(side: int) -> LlavaImageProcessor:
    """Return the image processor of the released models for images of ``side`` pixels.

    Images are padded to squares with the mean colour, resized bicubically so that the shortest side fits, cropped
    to their centre, and normalised as for ImageNet, also for CLIP (SPEC 9).
    """
    return LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[value / 255 for value in IMAGENET_MEAN],
        image_std=[value / 255 for value in IMAGENET_STD],
    )
