"""The networks that branches are made from. A family is one file with a `Branch` class, listed here."""

from functools import lru_cache

import timm

from piip.branches.base import Branch
from piip.branches.beit import BeitBranch
from piip.branches.convnext import ConvNeXtBranch
from piip.branches.eva import EvaBranch
from piip.branches.internvit import InternViTBranch
from piip.branches.uniperceiver import UniPerceiverBranch
from piip.branches.vit import ViTBranch
from piip.config import BranchConfig
from piip.errors import ConfigError, nearest

FAMILIES: tuple[type[Branch], ...] = (
    ViTBranch,
    EvaBranch,
    BeitBranch,
    ConvNeXtBranch,
    InternViTBranch,
    UniPerceiverBranch,
)

__all__ = ["FAMILIES", "Branch", "build_branch", "family_of"]


def family_of(arch: str) -> type[Branch]:
    """Return the class that builds an architecture.

    Raises:
        ConfigError: No family knows it.
    """
    for family in FAMILIES:
        if family.accepts(arch):
            return family
    if timm.is_model(arch):
        raise ConfigError(
            f"{arch} is a timm model, but no ViT, Eva, BEiT or ConvNeXt; only these can be branches."
        )
    raise ConfigError(f"No architecture is called {arch!r}. {nearest(arch, _architectures())}")


def build_branch(config: BranchConfig) -> Branch:
    """Build a branch.

    Raises:
        ConfigError: The architecture is unknown or cannot have this configuration.
    """
    return family_of(config.arch)(config)


@lru_cache(maxsize=1)
def _architectures() -> list[str]:
    families = ["vision_transformer", "deit", "eva", "beit", "convnext"]
    names: list[str] = [name for module in families for name in timm.list_models(module=module)]
    return [*names, *InternViTBranch.architectures, *UniPerceiverBranch.architectures]
