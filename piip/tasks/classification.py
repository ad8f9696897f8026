"""Image classification heads (SPEC 8)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from piip.config import PIIPConfig
from piip.described import Described
from piip.errors import ConfigError
from piip.network import PIIP
from piip.ops import in_float32
from piip.pyramid import crop_to_image
from piip.tokens import Tokens

if TYPE_CHECKING:
    from piip.data.views import Views

ClassificationHead = Literal["merged", "branch_heads"]
HeadToken = Literal["class", "first_patch", "mean"]

NORM_EPS = 1e-6


@dataclass(frozen=True)
class ClassifierConfig(Described):
    """A classification head.

    Attributes:
        num_classes: Number of classes.
        head: ``merged``: one head on the mean of the merged map; ``branch_heads``: a head per branch, averaged.
        classes: Class names in label order; without them, classes are numbers.
        token: What a branch head reads. The released models were trained on the top-left patch token. A merged
            head reads the mean of the map.
    """

    num_classes: int
    head: ClassificationHead = "branch_heads"
    token: HeadToken = "first_patch"
    classes: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse a head without classes."""
        self.check_range("num_classes", 1)
        if not self.classes:
            object.__setattr__(self, "classes", tuple(str(number) for number in range(self.num_classes)))
        if len(self.classes) != self.num_classes:
            raise ConfigError(
                f"There are {len(self.classes)} names for {self.num_classes} classes; give one for each."
            )


class ImageClassifier(nn.Module):
    """A network with a classification head.

    Args:
        config: The head.
        network: The network, whose merging must be ``none`` for branch heads and ``linear`` or ``conv`` without
            pyramid levels for a merged head.
    """

    def __init__(self, config: ClassifierConfig, network: PIIP) -> None:
        super().__init__()
        self.config = config
        self.network = network
        _check(config, network.config)
        widths = network.out_channels if config.head == "branch_heads" else network.out_channels[:1]
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for width in widths)
        self.heads = nn.ModuleList(nn.Linear(width, config.num_classes) for width in widths)
        for head in self.heads:
            nn.init.trunc_normal_(head.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, num_classes) of images (B, 3, H, W)."""
        if self.config.head == "merged":
            merged = self.network(image)[0].flatten(2).transpose(1, 2)
            with in_float32(image.device):
                return self.heads[0](self.norms[0](merged.to(self.head_dtype)).mean(1))
        padded = self.network.pad(image)
        branches = self.network.forward_features(padded)[-1]
        sizes = padded.shape[-2:], image.shape[-2:]
        with in_float32(image.device):
            logits = [
                head(self._read(norm, tokens, *sizes))
                for norm, head, tokens in zip(self.norms, self.heads, branches, strict=True)
            ]
            return torch.stack(logits).mean(0)

    @property
    def head_dtype(self) -> torch.dtype:
        """Type of the heads' weights: float32, whatever autocast does to the network."""
        weight: Tensor = self.heads[0].weight  # type: ignore[assignment]
        return weight.dtype

    def _read(self, norm: nn.Module, tokens: Tokens, padded: torch.Size, size: torch.Size) -> Tensor:
        if self.config.token == "mean":
            cells = crop_to_image(tokens.to_map(), padded, size).flatten(2).transpose(1, 2)
            return norm(cells.to(self.head_dtype)).mean(1)
        if self.config.token == "class" and tokens.prefix is not None:
            return norm(tokens.prefix[:, 0].to(self.head_dtype))
        return norm(tokens.x[:, 0].to(self.head_dtype))


def classify_views(classifier: ImageClassifier, views: "Views") -> Tensor:
    """Return logits (C,) of an image; their softmax is the mean of the probabilities in all views.

    Args:
        classifier: In evaluation mode.
        views: The image, squares at every scale.
    """
    logits = [classifier(view.image[None])[0].float() for view in views]
    if len(logits) == 1:
        return logits[0]
    return torch.stack(logits).log_softmax(1).logsumexp(0)  # a softmax is blind to the missing -log(views)


def _check(config: ClassifierConfig, network: PIIPConfig) -> None:
    merged = config.head == "merged"
    if merged == (network.merging.kind == "none") or network.merging.pyramid_levels:
        wanted = "'linear' or 'conv'" if merged else "'none'"
        raise ConfigError(
            f"The head {config.head!r} needs merging kind {wanted} without pyramid_levels, got "
            f"{network.merging.kind!r} with {network.merging.pyramid_levels}."
        )
    if config.token == "class" and not merged and not all(b.prefix_tokens for b in network.branches):
        raise ConfigError("token 'class' needs prefix_tokens in every branch.")
