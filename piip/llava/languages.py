"""The sizes of published language models, so that models around them can be counted without a network."""

from typing import Any

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from piip.errors import ConfigError

_VICUNA: dict[str, Any] = {"vocab_size": 32000, "max_position_embeddings": 4096}
_SIZES: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.5": _VICUNA
    | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "lmsys/vicuna-13b-v1.5": _VICUNA
    | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
KNOWN = tuple(_SIZES)
"""Names on the Hub of the language models of the published rows."""


def language_sizes(source: str) -> PreTrainedConfig:
    """Return the configuration of a language model, for counting alone.

    Args:
        source: One of `KNOWN`, for which nothing is read; else a folder or a name on the Hub.

    Raises:
        ConfigError: There is no such language model.
    """
    if source in _SIZES:
        return LlamaConfig(**_SIZES[source])
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source)
    except Exception as error:  # transformers, the Hub and json each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"The sizes of the language model {source} cannot be read ({reason}); give a folder, a name on the Hub "
            f"or one of {', '.join(KNOWN)}."
        ) from error
    return config
