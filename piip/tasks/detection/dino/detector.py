"""DINO as the released checkpoints have it (HEADS.md section 4)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from piip.interaction import DeformableAttention
from piip.ops import at_least_float32
from piip.tasks.detection.anchors import Size
from piip.tasks.detection.boxes import clip, from_centre, to_centre
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.dino.config import DINOConfig
from piip.tasks.detection.dino.denoising import Denoising, add_noise
from piip.tasks.detection.dino.losses import Objects, match, set_losses
from piip.tasks.detection.dino.neck import Neck
from piip.tasks.detection.dino.positions import (
    Places,
    first_guesses,
    inverse_sigmoid,
    locate,
    sine_boxes,
)
from piip.tasks.detection.dino.transformer import DecoderLayer, EncoderLayer
from piip.tasks.detection.result import Instances
from piip.tasks.detection.targets import Target

if TYPE_CHECKING:
    from piip.data.geometry import ImageMeta

PRIOR = 0.01  # probability of every class at the start


class Selected(NamedTuple):
    """The most promising tokens of the encoder, which the decoder's boxes start from."""

    logits: Tensor  # (B, Q, C)
    boxes: Tensor  # (B, Q, 4) logits of centre and size, infinite where a token is no box
    tokens: Tensor  # (B, Q) their indices


class Decoded(NamedTuple):
    """What every decoder layer says: L layers, B images, P denoising slots before Q queries."""

    logits: Tensor  # (L, B, P + Q, C)
    boxes: Tensor  # (L, B, P + Q, 4) centre and size from 0 to 1


class DINO(Detector):
    """Queries that start at the encoder's best tokens and refine their boxes from layer to layer.

    Its losses are ``loss_encoder_*``, ``loss_l_*`` for every decoder layer ``l`` and ``loss_l_noisy_*`` for its
    denoising queries, each for ``cls``, ``box`` and ``giou``.

    Args:
        config: What to detect and how.
        backbone: As for `Detector`.
    """

    config: DINOConfig
    config_class = DINOConfig

    def __init__(self, config: DINOConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        dim = config.embed_dim
        self.neck = Neck(config)
        self.level_embed = nn.Parameter(torch.empty(config.num_levels, dim))
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_depth))
        self.encoder_output = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.label_embed = nn.Embedding(config.num_classes, dim)
        self.position_head = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim)
        # The last of both reads the encoder.
        outputs = config.decoder_depth + 1
        self.class_heads = nn.ModuleList(_class_head(dim, config.num_classes) for _ in range(outputs))
        self.box_heads = nn.ModuleList(_box_head(dim) for _ in range(outputs))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the transformer as HEADS.md 4.9 says; the neck and the heads have done so."""
        parts = (self.encoder, self.encoder_output, self.position_head, self.decoder)
        for part in parts:
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention) and not self._in_backbone(module):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn the backbone's maps into the levels (B, D, H_l, W_l) of the transformer, in at least float32."""
        self._check_maps(maps)
        return self.neck([at_least_float32(x) for x in maps])

    def losses(
        self, pyramid: Sequence[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses of a batch (HEADS.md 4.8); see `Detector.losses`."""
        objects = [self.objects(size, target) for size, target in zip(sizes, targets, strict=True)]
        memory, places = self.encode(pyramid, sizes)
        selected = self.select(memory, places)
        noisy = self._noisy(objects)
        decoded = self.decode(memory, places, selected.boxes, noisy)
        slots = noisy.labels.shape[1] if noisy else 0

        logits = torch.cat([selected.logits[None], decoded.logits[:, :, slots:]])
        boxes = torch.cat([selected.boxes.sigmoid()[None], decoded.boxes[:, :, slots:]])
        matched = match(self.config, logits.detach(), boxes.detach(), objects)
        parts = set_losses(self.config, logits, boxes, matched, objects)
        names = ["encoder", *map(str, range(len(self.decoder)))]
        losses = _named(names, parts)
        # Nothing may name a class in a batch, but distributed training wants a gradient for every parameter.
        losses["loss_encoder_cls"] = losses["loss_encoder_cls"] + 0 * self.label_embed.weight.sum()
        if noisy is None:
            return losses
        wanted = noisy.objects([len(truth.labels) for truth in objects])[None]
        parts = set_losses(
            self.config, decoded.logits[:, :, :slots], decoded.boxes[:, :, :slots], wanted, objects
        )
        return losses | _named([f"{name}_noisy" for name in names[1:]], parts)

    @torch.no_grad()
    def detect(
        self, pyramid: Sequence[Tensor], sizes: Sequence[Size], metas: "Sequence[ImageMeta] | None" = None
    ) -> list[Instances]:
        """Return the detections of a batch (HEADS.md 4.6); see `Detector.detect`."""
        memory, places = self.encode(pyramid, sizes)
        decoded = self.decode(memory, places, self.select(memory, places).boxes)
        originals = [meta.original_size for meta in metas] if metas else list(sizes)
        factors = [meta.scale_factor * 2 for meta in metas] if metas else [(1.0,) * 4] * len(sizes)
        found = []
        for image, (size, original, factor) in enumerate(zip(sizes, originals, factors, strict=True)):
            scores = decoded.logits[-1, image].sigmoid().flatten()
            best, index = scores.topk(min(self.config.detections_per_image, len(scores)))
            query, label = index // self.config.num_classes, index % self.config.num_classes
            boxes = from_centre(decoded.boxes[-1, image, query]) * _extent(size, best)
            boxes = clip(boxes, best.new_tensor(size)) / best.new_tensor(factor)
            found.append(Instances(boxes, best, label, None, original))
        return found

    def encode(self, pyramid: Sequence[Tensor], sizes: Sequence[Size]) -> tuple[Tensor, Places]:
        """Let the tokens of all levels look at each other (HEADS.md 4.2, 4.3).

        Args:
            pyramid: Levels (B, D, H_l, W_l).
            sizes: (height, width) of the images without padding.

        Returns:
            Tokens of all levels (B, S, D), and where they are.
        """
        grids = [(x.shape[2], x.shape[3]) for x in pyramid]
        dim = self.config.embed_dim
        places = locate(grids, sizes, self.batch_size(sizes), dim, pyramid[0].device)
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in pyramid], dim=1)
        positions = places.embedding + self.level_embed[places.levels]
        for layer in self.encoder:
            memory = layer(memory, positions, places)
        return memory, places

    def select(self, memory: Tensor, places: Places) -> Selected:
        """Choose the tokens (B, S, D) that most look like an object of any class (HEADS.md 4.4)."""
        guesses, impossible = first_guesses(places)
        memory = self.encoder_output(memory.masked_fill(impossible[..., None], 0.0))
        logits = self.class_heads[-1](memory)
        best = min(self.config.num_queries, logits.shape[1])
        tokens = logits.detach().amax(-1).topk(best).indices
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        boxes = self.box_heads[-1](memory[rows, tokens]) + guesses[rows, tokens]
        return Selected(logits[rows, tokens], boxes, tokens)

    def decode(
        self, memory: Tensor, places: Places, start: Tensor, noisy: Denoising | None = None
    ) -> Decoded:
        """Refine boxes from layer to layer (HEADS.md 4.5).

        Args:
            memory: Tokens of the encoder (B, S, D).
            places: Where they are.
            start: Logits of the boxes that the queries begin with, (B, Q, 4).
            noisy: Queries that stand before them, in training.
        """
        x = self.query_embed.weight[: start.shape[1]].repeat(len(memory), 1, 1)
        boxes, blocked = start.detach(), None
        if noisy is not None:
            blocked = noisy.blocked(boxes.shape[1])
            filled = (noisy.labels >= 0)[..., None]
            x = torch.cat([self.label_embed(noisy.labels.clamp(min=0)) * filled, x], dim=1)
            boxes = torch.cat([noisy.boxes, boxes], dim=1)
        seen = reference = boxes.sigmoid()
        logits, found = [], []
        for index, layer in enumerate(self.decoder):
            whole = reference * places.valid[:, None, 0].repeat(1, 1, 2)
            positions = self.position_head(sine_boxes(whole, self.config.embed_dim))
            x = layer(x, positions, reference, memory, places, blocked)
            hidden = self.decoder_norm(x)
            logits.append(self.class_heads[index](hidden))
            # Looking forward twice: this box also teaches the layer before, whose box it starts from.
            found.append((self.box_heads[index](hidden) + inverse_sigmoid(seen)).sigmoid())
            if index + 1 < len(self.decoder):
                seen = (self.box_heads[index](x) + inverse_sigmoid(reference)).sigmoid()
                reference = seen.detach()
        return Decoded(torch.stack(logits), torch.stack(found))

    def objects(self, size: Size, target: Target) -> Objects:
        """Return the objects of an image of ``size`` (height, width) relative to it."""
        boxes = target["boxes"].to(self.level_embed.dtype)
        extent = _extent(size, boxes)
        return Objects(to_centre(boxes / extent), target["labels"], extent)

    def _noisy(self, objects: Sequence[Objects]) -> Denoising | None:
        if not self.config.num_denoising:
            return None
        return add_noise(self.config, [truth.boxes for truth in objects], [truth.labels for truth in objects])

    def _in_backbone(self, module: nn.Module) -> bool:
        return any(module is inner for inner in self.backbone.modules())


def _class_head(dim: int, classes: int) -> nn.Linear:
    head = nn.Linear(dim, classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))
    return head


def _box_head(dim: int) -> nn.Sequential:
    last = nn.Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), last)


def _extent(size: Size, like: Tensor) -> Tensor:
    """Return width, height, width and height (4,) of an image."""
    return like.new_tensor([size[1], size[0]] * 2)


def _named(names: Sequence[str], parts: Sequence[Tensor]) -> dict[str, Tensor]:
    kinds = zip(("cls", "box", "giou"), parts, strict=True)
    return {f"loss_{name}_{kind}": part[i] for kind, part in kinds for i, name in enumerate(names)}
