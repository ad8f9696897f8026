"""One training step of a PIIP-LLaVA as it is at its largest, for measuring the memory it takes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.llava.modeling import PiipLlavaForConditionalGeneration


def largest_step(model: PiipLlavaForConditionalGeneration, samples: int, length: int) -> Tensor:
    """Return the loss of samples of full length, each with one image, in which all text is learnt.

    It does what `PiipLlavaForConditionalGeneration.answer_logits` does, but knows where the image stands: places
    that follow from the values of tensors cannot be found in tensors without values.

    Args:
        model: The model.
        samples: Size of the batch.
        length: Tokens of every sample, those of the image included; at least one is text.
    """
    network = model.model.vision_tower.network
    side = network.config.image_size
    images = torch.empty(samples, 3, side, side)
    features = torch.stack(model.model.get_image_features(images).pooler_output)
    text = max(1, length - features.shape[1])
    words = torch.zeros(samples, features.shape[1] + text, dtype=torch.long)
    embeddings = model.get_input_embeddings()(words)
    places = (words == model.config.image_token_id).unsqueeze(-1)
    inputs = embeddings.masked_scatter(places, features.to(embeddings.dtype))
    hidden = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -text:].flatten(0, 1)).float()
    return F.cross_entropy(logits, words[:, -text:].flatten())
