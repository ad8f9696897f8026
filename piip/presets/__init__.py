"""Every published network by name, and a few of our own.

Names read ``piip_<networks>_<image sides>[_<variant>]``, networks and sides from the smallest network to the
largest, as the papers print them: ``piip_tsb_1120_896_448``. The variants ``dino``, ``seg``, ``cls`` and
``llava`` are made for a DINO detector, segmentation, classification and LLaVA.
"""

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType

from piip.config import PIIPConfig
from piip.errors import ConfigError
from piip.presets import ablations, classification, detection, multimodal, own, segmentation

__all__ = ["get_config", "list_models"]

_SOURCES = (detection, ablations, segmentation, classification, multimodal, own)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of all models that match a shell-style pattern, sorted."""
    return sorted(name for name in _configs() if fnmatchcase(name, pattern))


def get_config(name: str) -> PIIPConfig:
    """Return the description of a model.

    Raises:
        ConfigError: There is no such model.
    """
    configs = _configs()
    if name not in configs:
        raise ConfigError(
            f"Unknown model {name!r}. Did you mean {_nearest(name)!r}? piip.list_models() shows all "
            f"{len(configs)}."
        )
    return configs[name]


def _nearest(name: str) -> str:
    names = list_models()
    longer = [known for known in names if known.startswith(name)]
    return (longer or difflib.get_close_matches(name, names, n=1, cutoff=0.0))[0]


@lru_cache(maxsize=1)
def _configs() -> Mapping[str, PIIPConfig]:
    return MappingProxyType({name: config for source in _SOURCES for name, config in source.configs()})
