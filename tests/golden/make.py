"""Writes tests/golden/networks.json: small networks of every family, pinned without ../shared.

Configurations and tensor names are facts of the original's classes, weights come from `tests.helpers.pattern`, and
the outputs are piip's own, recorded while it matched the original's golden files (tests/convert/test_official.py).

    python -m tests.golden.make ../shared/golden
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from piip.convert import from_official
from tests.helpers import pattern

CASES = (
    "cls3_merge",
    "cls3_tokens",
    "det2_vit_nonsquare",
    "det3_beit",
    "det3_convnext_vit",
    "det3_internvit",
    "det3_uniperceiver",
    "det3_vit",
    "det3_vit_noproj",
    "llava2_mix",
)
TARGET = Path(__file__).with_name("networks.json")
SAMPLES = 64


def network(case: dict) -> torch.nn.Module:
    """Return the converted network of a case."""
    state = {name: pattern(name, torch.Size(shape)) for name, shape in case["tensors"].items()}
    return from_official(case["config"], state)


def outputs(case: dict) -> list[torch.Tensor]:
    """Return evenly spaced values of every output of a case."""
    image = pattern("image", torch.Size(case["input_shape"])) * case["input_shape"][-1] * 12
    with torch.no_grad():
        result = network(case)(image)
    maps = (result,) if isinstance(result, torch.Tensor) else result
    return [feature.flatten()[:: max(feature.numel() // SAMPLES, 1)][:SAMPLES] for feature in maps]


def main(folder: Path) -> None:
    cases = {}
    for name in CASES:
        facts = json.loads((folder / f"{name}.json").read_text())
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            names = [key for key in file.keys() if key.startswith("state.")]  # noqa: SIM118
            tensors = {key.removeprefix("state."): file.get_slice(key).get_shape() for key in names}
        case = {"config": facts["config"], "tensors": tensors, "input_shape": facts["input_shape"]}
        case["outputs"] = [[round(v, 7) for v in values.tolist()] for values in outputs(case)]
        cases[name] = case
    TARGET.write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
