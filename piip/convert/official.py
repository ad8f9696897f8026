"""Networks of the original as ours."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from piip.config import PIIPConfig
from piip.convert.configs import network_config, sub_project
from piip.convert.names import network_name, split_branch
from piip.errors import CheckpointError, ConfigError
from piip.meta import on_meta
from piip.network import PIIP
from piip.tasks.classification import ClassificationHead, ClassifierConfig, ImageClassifier
from piip.weights import load_exactly

HEADS: Mapping[str, ClassificationHead] = {
    "cls_head.weight": "merged",
    "branch1.head.weight": "branch_heads",
}
"""The tensor that tells each kind of classification head."""
# Parameters that the original's classes have but never use: final norms of whole networks used as branches, and
# the finest pyramid level of the three-branch class with DINO (SPEC 5.1, 5.3, 7.1).
UNUSED_IN_BRANCH = ("layernorm.", "head.norm.", "post_layernorm.", "embeddings.position_ids")


def from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Return a network of the original as ours, in evaluation mode.

    Args:
        config: ``cls`` ("<sub-project> <class>") and the arguments of the original's class, as in the golden
            files' ``config``.
        state_dict: Its tensors under the original's names, without ``backbone.``.

    Returns:
        A `PIIP`, or an `ImageClassifier` for the classification sub-project. A model built from the same
        description and weights is the same class.

    Raises:
        CheckpointError: The configuration has no equivalent, or a tensor is unknown, missing or of another shape.
    """
    try:
        description = network_config(config, state_dict)
    except KeyError as error:
        raise CheckpointError(
            f"The configuration or the checkpoint has no {error}; it is not complete."
        ) from error
    except ConfigError as error:
        raise CheckpointError(f"The configuration is not one of a possible network: {error}") from error
    if sub_project(config) == "classification" and classifier_config(state_dict) is None:
        raise CheckpointError(f"The checkpoint of a classifier has neither {' nor '.join(HEADS)}.")
    return convert_network(description, state_dict)


def convert_network(config: PIIPConfig, state_dict: Mapping[str, Tensor]) -> PIIP | ImageClassifier:
    """Return the original's tensors as our network, with its classification heads if it has some.

    Args:
        config: The network.
        state_dict: Tensors under the original's names, without ``backbone.``.

    Raises:
        CheckpointError: A tensor is unknown, missing or of another shape, or the heads do not fit the network.
    """
    with on_meta():
        network = PIIP(config)
    state, unknown = translate_network(state_dict, network)
    head = classifier_config(state_dict)
    if head is None:
        load_exactly(network, state, unknown)
        return network.eval()
    try:
        with on_meta():
            classifier = ImageClassifier(head, network)
    except ConfigError as error:
        raise CheckpointError(f"The checkpoint's heads do not fit the network: {error}") from error
    head_state, unknown = _translate_head(unknown, state_dict)
    state = {f"network.{key}": value for key, value in state.items()} | head_state
    load_exactly(classifier, state, unknown)
    return classifier.eval()


def translate_network(state_dict: Mapping[str, Tensor], network: PIIP) -> tuple[dict[str, Tensor], list[str]]:
    """Return the original's tensors under a network's names.

    Args:
        state_dict: Tensors under the original's names, without ``backbone.``.
        network: The network that they are for; it may be on the meta device.

    Returns:
        The tensors under our names, and the names that nothing is known about.
    """
    config = network.config
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    state: dict[str, Tensor] = {}
    unknown: list[str] = []
    inside: list[dict[str, Tensor]] = [{} for _ in config.branches]
    for key, value in state_dict.items():
        part = split_branch(key)
        if part is not None and part[0] < len(inside):
            if not part[1].startswith(UNUSED_IN_BRANCH):
                inside[part[0]][part[1]] = value
        elif (name := network_name(key, config.merging)) is not None:
            state[name] = _reshaped(value, shapes.get(name, value.shape))
        elif not _unused_level(key, config):
            unknown.append(key)
    for index, tensors in enumerate(inside):
        branch = network.branches[index]
        known = {k: v for k, v in tensors.items() if not k.startswith(branch.unused_prefixes)}  # type: ignore[arg-type]
        unknown.extend(f"branch{index + 1}.{key}" for key in tensors if key not in known)
        adapted = branch.adapt_state_dict(known)  # type: ignore[operator]
        state |= {f"branches.{index}.{key}": _own_copy(value) for key, value in adapted.items()}
    return state, unknown


def _unused_level(key: str, config: PIIPConfig) -> bool:
    return key.startswith("fpn1.") and config.merging.pyramid_levels == (2, 3, 4)


def _reshaped(value: Tensor, wanted: torch.Size) -> Tensor:
    """Return a linear layer's weight in the shape of the 1x1 convolution that ours uses for it."""
    if len(wanted) == 4 and value.ndim == 2:
        value = value[:, :, None, None]
    return _own_copy(value)


def _own_copy(value: Tensor) -> Tensor:
    return value.detach().clone()


def classifier_config(state_dict: Mapping[str, Tensor]) -> ClassifierConfig | None:
    """Return the classification head that a checkpoint of the original holds, or None."""
    for key, kind in HEADS.items():
        if key in state_dict:
            return ClassifierConfig(len(state_dict[key]), kind)
    return None


def _translate_head(
    unknown: Iterable[str], state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    state, rest = {}, []
    for key in unknown:
        owner, _, name = key.partition(".")
        part, _, kind = name.partition(".")
        if owner in ("cls_norm", "cls_head"):
            state[f"{owner.removeprefix('cls_')}s.0.{name}"] = _own_copy(state_dict[key])
        elif owner.startswith("branch") and part in ("norm", "head"):
            state[f"{part}s.{int(owner[6:]) - 1}.{kind}"] = _own_copy(state_dict[key])
        else:
            rest.append(key)
    return state, rest
