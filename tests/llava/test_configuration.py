"""What a PIIP-LLaVA may be, and what is refused in one sentence."""

import pytest

pytest.importorskip("transformers")

from piip.errors import ConfigError
from piip.llava import PiipLlavaConfig
from tests.llava.tiny import config, network_config, text_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_aspect": True}, "no option 'keep_aspect'. Did you mean 'keep_aspect_ratio'?"),
        ({"vision_feature_layer": -2}, "no option 'vision_feature_layer'"),
        ({"vision_feature_select_strategy": "default"}, "no option 'vision_feature_select_strategy'"),
        ({"out_grid": (0, 4)}, r"out_grid is \(0, 4\); give its height and width"),
        ({"out_grid": [4]}, r"out_grid is \[4\]"),
        ({"out_grid": 4}, "out_grid is 4;"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_options_that_transformers_knows_are_kept():
    settings = config(projector_norm="layer", out_grid=[2, 3], tie_word_embeddings=False, dtype="bfloat16")
    assert (settings.projector_norm, list(settings.out_grid), settings.image_seq_length) == (
        "layer",
        [2, 3],
        6,
    )
    assert str(settings.dtype) == "torch.bfloat16"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (101, r"vocabulary has 101 tokens; call llm\.resize_token_embeddings"),
        (-1, "image token is -1; add one"),
        (None, "image token is None; add one"),
    ],
)
def test_image_tokens_outside_of_the_vocabulary_are_refused(token, message):
    with pytest.raises(ConfigError, match=message):
        PiipLlavaConfig.of(network_config(), text_config(), token)
