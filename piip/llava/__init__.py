"""PIIP-LLaVA inside transformers: ``import piip.llava`` registers configuration, model and processor.

``AutoModelForImageTextToText``, ``AutoProcessor`` and ``pipeline("image-text-to-text")`` then know the type.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from piip.hf import PiipConfig
from piip.llava.answering import Answerer, Turn
from piip.llava.chat import Chat
from piip.llava.configuration import PiipLlavaConfig
from piip.llava.images import SquareImageProcessor, WholeImageProcessor, image_processor
from piip.llava.modeling import PiipLlavaForConditionalGeneration, PiipLlavaModel
from piip.llava.processing import CHAT_TEMPLATE, PiipLlavaProcessor

__all__ = [
    "CHAT_TEMPLATE",
    "Answerer",
    "Chat",
    "PiipLlavaConfig",
    "PiipLlavaForConditionalGeneration",
    "PiipLlavaModel",
    "PiipLlavaProcessor",
    "SquareImageProcessor",
    "Turn",
    "WholeImageProcessor",
    "image_processor",
]

AutoConfig.register(PiipLlavaConfig.model_type, PiipLlavaConfig)
AutoModel.register(PiipLlavaConfig, PiipLlavaModel)
AutoModelForImageTextToText.register(PiipLlavaConfig, PiipLlavaForConditionalGeneration)
AutoModelForMultimodalLM.register(PiipLlavaConfig, PiipLlavaForConditionalGeneration)
AutoProcessor.register(PiipLlavaConfig, PiipLlavaProcessor)
AutoImageProcessor.register(PiipLlavaConfig, image_processor_classes={"torchvision": WholeImageProcessor})
# A saved processor names the class of its images' own; a configuration can have only one.
AutoImageProcessor.register(PiipConfig, image_processor_classes={"torchvision": SquareImageProcessor})
