"""A tiny language model in a folder, as `piip train` reads one, and pictures of one colour to talk about."""

import json

import numpy as np
import torch
from PIL import Image
from transformers import LlamaForCausalLM

from tests.llava.tiny import text_config, tokenizer

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210)}


def save_language_model(folder, **changes):
    """Save a language model of 101 words with its tokenizer."""
    torch.manual_seed(0)
    config = text_config()
    config.update(changes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_colours(root, counts=(6, 2)):
    """Write noisy pictures with conversations (train, val) and questions in both forms about them."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for split, count in zip(("train", "val"), counts, strict=True):
        samples, yes_or_no, colours = [], [], []
        for number in range(count):
            for name, colour in COLOURS.items():
                file = f"{split}_{name}_{number}.png"
                pixels = np.clip(random.normal(colour, 30, (50, 60, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "images" / file)
                turns = [("human", "<image>\nWhich?"), ("gpt", name)]
                turns = [{"from": who, "value": text} for who, text in turns]
                samples.append({"id": file, "image": file, "conversations": turns})
                other = list(COLOURS)[number % 3]
                label = "yes" if other == name else "no"
                yes_or_no.append({"image": file, "text": f"Is it {other}?", "label": label})
                colours.append({"image": file, "question": "Which?", "answers": [name] * 10})
        (root / f"{split}.json").write_text(json.dumps(samples))
        (root / f"pope_{split}.jsonl").write_text("\n".join(map(json.dumps, yes_or_no)))
        (root / f"vqa_{split}.json").write_text(json.dumps(colours))
    return root
