"""PIIP as a backbone of transformers: ``import piip.hf`` registers it, and any of its heads takes it.

A configuration holds the whole description of a network; weights come with ``from_pretrained`` of a saved model, or
are taken over from a network of piip (`PiipBackbone.from_network`).
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput

from piip.config import PIIPConfig
from piip.meta import on_meta
from piip.network import PIIP, build_on_meta


@strict
class PiipConfig(BackboneConfigMixin, PreTrainedConfig):
    """The description of a PIIP network as a configuration of transformers.

    Args:
        network: The network, as ``PIIPConfig.to_dict`` returns it; `PiipConfig.of` takes a `PIIPConfig`.
        out_features: Maps that the backbone returns, of ``level1``, ``level2``, ...; all by default.
        out_indices: The same as numbers.
    """

    model_type = "piip"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    network: dict[str, Any] | None = None
    num_levels: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Name the maps and choose those that are returned."""
        wanted = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        self.stage_names = [f"level{number}" for number in range(1, max(self.num_levels, 1) + 1)]
        if not any(wanted.values()):
            wanted["out_features"] = list(self.stage_names)
        indices = wanted["out_indices"]
        self.set_output_features_output_indices(
            out_features=wanted["out_features"], out_indices=list(indices) if indices is not None else None
        )
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, config: PIIPConfig, **options: Any) -> "PiipConfig":
        """Return the configuration of a network.

        Args:
            config: The network.
            options: ``out_features`` or ``out_indices``.
        """
        levels = len(build_on_meta(config).out_channels)
        return cls(network=config.to_dict(), num_levels=levels, **options)

    def network_config(self) -> PIIPConfig:
        """Return the description of the network.

        Raises:
            ConfigError: It describes no possible network.
        """
        return PIIPConfig.from_dict(self.network or {})


class _PiipPreTrained(PreTrainedModel):
    config_class = PiipConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    # The network has its own attention: whichever is asked for concerns the language model or the head beside it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    network: PIIP
    _no_split_modules = ["Block", "GridBlock", "EvaBlock", "WindowedEvaBlock", "InteractionBlock"]  # noqa: RUF012

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass; transformers sets it where it is."""
        return self.network.grad_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.network.set_grad_checkpointing(enable)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leave weights alone: the network has initialised or loaded its own.

        transformers builds models on the meta device, where buffers that are not saved lose their content.
        """
        fill = getattr(module, "init_non_persistent_buffers", None)
        if fill is not None:
            fill()


class PiipBackbone(BackboneMixin, _PiipPreTrained):
    """A PIIP network that returns its maps as a backbone of transformers.

    Args:
        config: The network and which of its maps are returned.
    """

    has_attentions = False

    def __init__(self, config: PiipConfig) -> None:
        super().__init__(config)
        self.network = PIIP(config.network_config())
        self.num_features = list(self.network.out_channels)
        self.post_init()

    @classmethod
    def from_network(cls, network: PIIP, **options: Any) -> Self:
        """Return a backbone around a network of piip, whose weights it shares.

        Args:
            network: The network.
            options: ``out_features`` or ``out_indices``.
        """
        with on_meta():
            backbone = cls(PiipConfig.of(network.config, **options))
        backbone.network = network
        return backbone

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, return_dict: bool | None = None, **options: Any
    ) -> Any:
        """Return the chosen maps of images (B, 3, H, W), finest first."""
        maps = self.network(pixel_values)
        chosen = tuple(maps[index] for index in self.out_indices)
        if return_dict is False:
            return (chosen,)
        return BackboneOutput(feature_maps=chosen)


class PiipModel(_PiipPreTrained):
    """A PIIP network whose last map is a sequence of features.

    Args:
        config: The network.
    """

    def __init__(self, config: PiipConfig) -> None:
        super().__init__(config)
        self.network = PIIP(config.network_config())
        self.post_init()

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Return the cells of the coarsest map of images (B, 3, H, W) as ``last_hidden_state`` (B, H' * W', C)."""
        cells = self.network(pixel_values)[-1].flatten(2).transpose(1, 2)
        return (cells,) if options.get("return_dict") is False else BaseModelOutput(last_hidden_state=cells)


def _read_own_folders(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``AutoBackbone.from_pretrained`` read the folder of a saved `PiipBackbone`.

    That of transformers 5.23 asks the Hub for every name, also that of a folder, and takes what the Hub does not
    know for a network of timm. Everything but folders of ours goes its way.
    """

    @functools.wraps(original)
    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        if not _is_own_folder(Path(str(name))):
            return original(cls, name, *arguments, **options)
        options.pop("use_timm_backbone", None)
        return PiipBackbone.from_pretrained(name, *arguments, **options)

    return from_pretrained


def _is_own_folder(folder: Path) -> bool:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == PiipConfig.model_type


AutoConfig.register(PiipConfig.model_type, PiipConfig)
AutoBackbone.register(PiipConfig, PiipBackbone)
AutoModel.register(PiipConfig, PiipModel)
_original: Any = AutoBackbone.from_pretrained
setattr(AutoBackbone, "from_pretrained", classmethod(_read_own_folders(_original.__func__)))  # noqa: B010
