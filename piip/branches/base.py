"""What the network asks of a branch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from timm.layers import LayerScale, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.config import BranchConfig
from piip.errors import ConfigError
from piip.ops import LinearGELU, scale_outputs
from piip.tokens import Tokens

# Names of timm's layer scales and of the layers whose output they scale: ViT, then Eva, then ConvNeXt.
_SCALED = (
    ("ls1", "attn.proj"),
    ("ls2", "mlp.fc2"),
    ("gamma_1", "attn.proj"),
    ("gamma_2", "mlp.fc2"),
    ("gamma", "mlp.fc2"),
)


class Branch(nn.Module, ABC):
    """One branch: embeds its image and runs its blocks, any range at a time.

    Attributes:
        family: Name of the kind of network.
        unused_prefixes: Parts of published checkpoints (heads, final norms) that a branch does not have.
        config: The description it was built from.
        blocks: The blocks, in the order in which `BranchConfig.interaction_indexes` counts them.
        dims: Width after every block.
        strides: Pixels of the branch's image per token after every block.
        grad_checkpointing: Recompute every block in the backward pass instead of keeping its activations.
    """

    family: ClassVar[str]
    unused_prefixes: ClassVar[tuple[str, ...]] = ()
    blocks: nn.ModuleList
    dims: tuple[int, ...]
    strides: tuple[int, ...]

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False

    @classmethod
    @abstractmethod
    def accepts(cls, arch: str) -> bool:
        """Return whether this class builds the architecture."""

    @classmethod
    @abstractmethod
    def count_blocks(cls, arch: str, options: Mapping[str, Any]) -> int:
        """Return the number of blocks of an architecture with constructor ``options``."""

    def forward(self, image: Tensor) -> Tokens:
        """Return `embed` of an image; called so, the branch's own parameters are where hooks brought them."""
        return self.embed(image)

    @abstractmethod
    def embed(self, image: Tensor) -> Tokens:
        """Return the tokens of an image (B, 3, H, W) before the first block."""

    @abstractmethod
    def run(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Run the blocks ``start`` to ``stop`` (exclusive)."""

    @abstractmethod
    def adapt_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published checkpoint under this branch's names and at its sizes.

        Classifier heads and other parts that a branch does not have are left out; whatever is not recognised
        is kept, so that loading reports it.
        """

    def freeze(self) -> Self:
        """Stop training the branch: no gradients, no stochastic depth."""
        self.requires_grad_(False)
        return self.eval()

    def fold(self) -> None:
        """Let the blocks' linear layers take over layer scales and activations, for inference."""
        for block in self.blocks:
            _fold_activation(getattr(block, "mlp", None))
            for scale_name, layer_name in _SCALED:
                _fold_scale(block, scale_name, layer_name)

    def _call(self, block: Callable[..., Tensor], *inputs: object) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _check_depth(self) -> None:
        if len(self.blocks) != self.config.depth:
            raise ConfigError(
                f"interaction_indexes of {self.config.arch} cover {self.config.depth} blocks but it has "
                f"{len(self.blocks)}; let the last range end at {len(self.blocks) - 1}."
            )


def _fold_activation(mlp: nn.Module | None) -> None:
    if isinstance(mlp, Mlp) and isinstance(mlp.act, nn.GELU) and isinstance(mlp.fc1, nn.Linear):
        approximate = mlp.act.approximate
        mlp.fc1.__class__ = LinearGELU
        mlp.fc1.approximate = approximate  # type: ignore[assignment]
        mlp.act = nn.Identity()


def _fold_scale(block: nn.Module, scale_name: str, layer_name: str) -> None:
    scale = getattr(block, scale_name, None)
    if isinstance(scale, LayerScale):
        scale_outputs(block.get_submodule(layer_name), scale.gamma)  # type: ignore[arg-type]
        setattr(block, scale_name, nn.Identity())
    elif isinstance(scale, nn.Parameter):
        scale_outputs(block.get_submodule(layer_name), scale)  # type: ignore[arg-type]
        setattr(block, scale_name, None)


def drop_prefixed(state_dict: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Return the entries whose names start with none of the prefixes."""
    return {key: value for key, value in state_dict.items() if not key.startswith(tuple(prefixes))}
