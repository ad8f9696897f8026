"""Where in the image an answer came from: the language model's attention, and what every branch contributed."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip.errors import DataError, require
from piip.files import atomic_write
from piip.llava.messages import begun, count_added
from piip.llava.modeling import PiipLlavaForConditionalGeneration

Grid = NDArray[np.float32]


@dataclass(frozen=True)
class Explanation:
    """Maps over the grid of an image's tokens, each with a sum of 1.

    Attributes:
        image: What the model saw, (H, W, 3) from 0 to 1.
        answer: What it said.
        attention: Attention from the answer's tokens, averaged over layers and heads.
        branches: Contribution of every branch to the answer's probability: the gradient times what the branch added
            to a token, without sign.
        shares: Share of every branch in all contributions, with a sum of 1.
    """

    image: NDArray[np.float32]
    answer: str
    attention: Grid
    branches: tuple[Grid, ...]
    shares: tuple[float, ...]

    def plot(self, path: str | Path) -> None:
        """Draw the image, the attention and every branch's contribution side by side into a file.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figures = require("matplotlib.figure", "llava", "Explanation.plot")
        names = [f"branch {number}: {100 * share:.0f} %" for number, share in enumerate(self.shares, start=1)]
        panels = [("", None), ("attention", self.attention), *zip(names, self.branches, strict=True)]
        figure = figures.Figure(figsize=(4 * len(panels), 4.6), layout="constrained")
        figure.suptitle("\n".join(wrap(self.answer, 26 * len(panels), max_lines=3)), parse_math=False)
        for place, (name, heat) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            height, width = self.image.shape[:2]
            place.imshow(self.image, extent=(0, width, height, 0))
            if heat is not None:
                extent = (0, width, height, 0)
                place.imshow(heat, extent=extent, cmap="inferno", alpha=0.6, interpolation="bilinear")
            place.set_title(name)
            place.set_axis_off()
        with atomic_write(path) as temporary:
            figure.savefig(temporary)


def explain(
    model: PiipLlavaForConditionalGeneration, processor: Any, image: Any, prompt: str, answer: str | Tensor
) -> Explanation:
    """Return where in an image an answer came from.

    Args:
        model: In evaluation mode.
        processor: Its processor.
        image: What the processor takes.
        prompt: The conversation up to the answer, with one image token.
        answer: The tokens (L) that the model said, or another answer to ask about, exactly as it follows the
            prompt, with its space.

    Raises:
        DataError: The prompt has no image, or more than one, or the answer is empty.
    """
    if prompt.count(processor.image_token) != 1 or not len(answer):
        raise DataError(
            "An explanation needs a prompt with exactly one image, and an answer that is not empty."
        )
    pixels, ids, count = _read(processor, image, prompt, answer)
    pixels, ids = pixels.to(model.device), ids.to(model.device)
    length = ids.shape[1]
    seen = ids[0] == model.config.image_token_id
    seen[length - count :] = False  # whatever the model says, it shows no image
    asking = torch.arange(length - count - 1, length - 1, device=ids.device)

    tower = model.model.vision_tower.network
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        maps = tower(pixels.to(next(tower.parameters()).dtype))
        parts = [part.float() for part in projector.branch_tokens(maps)]
    features = torch.stack(parts).sum(0).requires_grad_()
    with _plain_attention(model), torch.enable_grad():
        embedded = model.get_input_embeddings()(ids).detach()
        embedded = embedded.masked_scatter(seen[None, :, None], features.to(embedded.dtype))
        output = model(inputs_embeds=embedded, output_attentions=True, use_cache=False)
        likelihood = (
            output.logits[0, asking].float().log_softmax(-1).gather(1, ids[0, asking + 1, None]).sum()
        )
        (gradient,) = torch.autograd.grad(likelihood, features)
    attention = torch.stack(
        [layer[0][:, asking][..., seen].mean((0, 1)) for layer in output.attentions]
    ).mean(0)
    effects = [(gradient * part).sum(-1)[0].abs() for part in parts]
    total = sum(float(effect.sum()) for effect in effects)
    grid = projector.grid(maps)
    return Explanation(
        _as_picture(pixels[0], processor.image_processor),
        (answer if isinstance(answer, str) else _decode(processor, answer)).strip(),
        _normalised(attention, grid),
        tuple(_normalised(effect, grid) for effect in effects),
        tuple(float(effect.sum()) / max(total, 1e-12) for effect in effects),
    )


def _read(processor: Any, image: Any, prompt: str, answer: str | Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the image as the model sees it, the tokens (1, L) of all, and how many are the answer's."""
    tokenizer = processor.tokenizer
    text = prompt + answer if isinstance(answer, str) else prompt
    inputs = processor(
        images=[image], text=[text], return_tensors="pt", add_special_tokens=not begun(tokenizer, prompt)
    )
    pixels, ids = inputs["pixel_values"], inputs["input_ids"]
    if isinstance(answer, str):
        return pixels, ids, count_added(tokenizer, prompt, text)
    return pixels, torch.cat([ids, answer.to(ids.device)[None]], dim=1), len(answer)


def _decode(processor: Any, tokens: Tensor) -> str:
    return str(processor.tokenizer.decode(tokens, skip_special_tokens=True))


@contextmanager
def _plain_attention(model: PiipLlavaForConditionalGeneration) -> Iterator[None]:
    """Let the language model return its attention, which fused kernels never hold."""
    language = model.model.language_model
    before = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(before)


def _normalised(values: Tensor, grid: tuple[int, int]) -> Grid:
    values = values.detach().float().cpu()
    return (values / values.sum().clamp(min=1e-12)).view(grid).numpy()


def _as_picture(pixels: Tensor, image_processor: Any) -> NDArray[np.float32]:
    mean, std = (
        torch.tensor(values, device=pixels.device)[:, None, None]
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (pixels.float() * std + mean).clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def wrap(text: str, letters: int, max_lines: int) -> list[str]:
    """Return a text in lines of so many letters at most; what does not fit becomes dots."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)  # models write anything
    return textwrap.wrap(shown, letters, max_lines=max_lines, placeholder=" ...")
