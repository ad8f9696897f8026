"""What data parallel training on 8 and 64 GPUs would exchange and wait for: ``python -m benchmarks.communication``.

A simulation, not a measurement: no GPU was there. The backward pass of every block takes the time of its operations
at the assumed rate; what it leaves to exchange waits for the links as it would in DistributedDataParallel (buckets
of 25 MiB) or in FSDP (a unit for every block, gathered while the one before it computes). The bytes are those of
the models' real parameters; a test compares them with what two processes exchange.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import RESULTS, machine
from piip import get_config
from piip.cost import CostTable, executed_cost, run_detector
from piip.files import write_json
from piip.network import PIIP
from piip.tasks.detection import RCNN, RCNNConfig

MODELS = {"piip_tsb_1120_896_448": 2, "piip_sbl_1120_672_448": 2, "piip_h6b_1024_512": 1}
"""Networks, and images on every GPU."""
GPUS = (8, 64)


@dataclass(frozen=True)
class Assumptions:
    """Everything that is not known from the model.

    Attributes:
        operations: Operations per second of a GPU in bfloat16, as advertised.
        used: Share of them that training reaches.
        node: GPUs in a node.
        nvlink: Bytes per second that a GPU sends within its node.
        infiniband: Bytes per second that a GPU sends to other nodes (400 Gb/s each).
        reached: Share of both that collectives reach.
        start: Seconds to start a collective.
        hop: Seconds of every one of its steps.
        bucket: Bytes of a bucket of DistributedDataParallel; the first one is smaller.
        first_bucket: Bytes of that one.
        weight_bytes: Bytes of a gathered weight and of an exchanged gradient: 4 in float32, as piip trains.
        state_bytes: Bytes per parameter that training keeps: weight, gradient and AdamW's two averages in float32.
    """

    operations: float = 790e12
    used: float = 0.45
    node: int = 8
    nvlink: float = 450e9
    infiniband: float = 50e9
    reached: float = 0.8
    start: float = 20e-6
    hop: float = 3e-6
    bucket: int = 25 * 2**20
    first_bucket: int = 2**20
    weight_bytes: int = 4
    state_bytes: int = 16


@dataclass(frozen=True)
class Unit:
    """A piece of a model: its trained parameters, and its operations in a forward pass of one image."""

    name: str
    params: int
    operations: float
    is_block: bool


@dataclass(frozen=True)
class Traffic:
    """Bytes that a GPU sends in a step."""

    inside: float
    between: float

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.inside + other.inside, self.between + other.between)


def build(name: str) -> RCNN:
    """Return a Mask R-CNN on a network, without memory for its weights."""
    with torch.device("meta"):
        network = PIIP(get_config(name))
        described = {"in_channels": network.out_channels, "strides": tuple(map(int, network.strides))}
        classes = tuple(map(str, range(80)))
        return RCNN(RCNNConfig.from_dict(described | {"classes": classes}), network)


def units(detector: RCNN, cost: CostTable) -> list[Unit]:
    """Return the pieces of a detector in the order of the forward pass."""
    network = detector.backbone
    assert isinstance(network, PIIP)
    parts = {part.name: 2.0 * part.macs for part in cost.parts}
    found = []
    for number, branch in enumerate(network.branches, start=1):
        rest = trained(branch) - trained(branch.blocks)  # type: ignore[arg-type]
        found.append(Unit(f"branch{number}.embed", rest, parts.get(f"branch{number}.embed", 0.0), False))
    for k in range(network.config.num_interactions):
        for number, branch in enumerate(network.branches, start=1):
            first, last = network.config.branches[number - 1].interaction_indexes[k]
            each = parts[f"branch{number}.blocks"] / len(branch.blocks)  # type: ignore[arg-type]
            for index, block in enumerate(branch.blocks[first : last + 1], first):  # type: ignore[index]
                found.append(Unit(f"branch{number}.blocks.{index}", trained(block), each, True))
        if len(network.interactions):
            each = parts["interaction"] / len(network.interactions)
            found.append(Unit(f"interactions.{k}", trained(network.interactions[k]), each, False))
    found.append(Unit("merge", trained(network.mergings), parts.get("merge", 0.0), False))
    found.append(Unit("pyramid", trained(network.levels), parts.get("pyramid", 0.0), False))
    for name, child in detector.named_children():
        if child is not network and trained(child):
            found.append(Unit(name, trained(child), parts.get(name, 0.0), False))
    return found


def trained(module: nn.Module) -> int:
    """Return the number of trained parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def gradient_bytes(model: nn.Module, given: Assumptions) -> int:
    """Return the bytes of all gradients, which every process hands to DistributedDataParallel's exchange."""
    return trained(model) * given.weight_bytes


def half(size: float, gpus: int, given: Assumptions) -> tuple[float, Traffic]:
    """Return seconds and bytes of gathering ``size`` bytes from all GPUs, or of reducing and scattering them.

    Within a node over NVLink; between nodes every GPU sends an eighth over its own InfiniBand.
    """
    nodes = gpus // given.node
    traffic = Traffic(size * (given.node - 1) / given.node, size / given.node * (nodes - 1) / nodes)
    seconds = traffic.inside / (given.nvlink * given.reached) + traffic.between / (
        given.infiniband * given.reached
    )
    return seconds + given.start + given.hop * (given.node - 1 + nodes - 1), traffic


def seconds_of(operations: float, images: int, given: Assumptions) -> float:
    """Return the seconds of a number of operations per image."""
    return operations * images / (given.operations * given.used)


def ddp(model: Sequence[Unit], images: int, gpus: int, given: Assumptions) -> dict[str, float]:
    """Simulate copies on all GPUs: buckets of gradients are exchanged while the backward pass goes on."""
    now = forward = sum(seconds_of(unit.operations, images, given) for unit in model)
    link, busy, traffic = forward, 0.0, Traffic(0, 0)
    for moment, size in _buckets(model, images, now, given):
        taken, sent = half(size, gpus, given)
        link = max(link, moment) + 2 * taken  # reduced and scattered, then gathered
        busy, traffic = busy + 2 * taken, traffic + sent + sent
        now = moment
    return _row(3 * forward, link, busy, traffic) | {"memory": float(given.state_bytes * _params(model))}


def _buckets(
    model: Sequence[Unit], images: int, now: float, given: Assumptions
) -> Iterator[tuple[float, float]]:
    """Yield when each bucket is full, and its bytes; a large layer fills several at once."""
    limit, filled = given.first_bucket, 0
    for unit in reversed(model):
        now += 2 * seconds_of(unit.operations, images, given)
        filled += unit.params * given.weight_bytes
        while filled >= limit:
            yield now, limit
            filled, limit = filled - limit, given.bucket
    yield now, filled


def fsdp(model: Sequence[Unit], images: int, gpus: int, given: Assumptions, hybrid: bool) -> dict[str, float]:
    """Simulate shards: blocks are gathered before they run, forward and backward, and their gradients scattered.

    Everything but the blocks is one unit that stays gathered. With ``hybrid``, a node holds all shards, and nodes
    exchange the gradients of equal shards.
    """
    sharing = given.node if hybrid else gpus
    rest = sum(unit.params for unit in model if not unit.is_block) * given.weight_bytes
    link, now, busy, traffic = 0.0, 0.0, 0.0, Traffic(0, 0)

    def exchange(size: float, earliest: float, reduce: bool = False) -> float:
        nonlocal link, busy, traffic
        taken, sent = half(size, sharing, given)
        if reduce and hybrid and gpus > given.node:
            more = Traffic(0, 2 * size / given.node * (gpus - given.node) / gpus)
            taken += more.between / (given.infiniband * given.reached) + given.start
            sent = sent + more
        link, busy, traffic = max(link, earliest) + taken, busy + taken, traffic + sent
        return link

    now = exchange(rest, 0.0)
    for factor, order in ((1, list(model)), (2, list(reversed(model)))):
        sizes = [unit.params * given.weight_bytes for unit in order if unit.is_block]
        ready = exchange(sizes[0], now)
        for unit in order:
            begin = max(now, ready) if unit.is_block else now
            now = begin + factor * seconds_of(unit.operations, images, given)
            if not unit.is_block:
                continue
            size = sizes.pop(0)
            if sizes:
                ready = exchange(sizes[0], begin)  # asked for while this one computes
            if factor == 2:
                exchange(size, now, reduce=True)
    exchange(rest, now, reduce=True)
    largest = max(unit.params for unit in model if unit.is_block) * given.weight_bytes
    memory = given.state_bytes * _params(model) / sharing + 2 * rest + 2 * largest
    compute = 3 * sum(seconds_of(unit.operations, images, given) for unit in model)
    return _row(compute, max(link, now), busy, traffic) | {"memory": memory}


def _params(model: Sequence[Unit]) -> int:
    return sum(unit.params for unit in model)


def _row(compute: float, finished: float, busy: float, traffic: Traffic) -> dict[str, float]:
    step = max(compute, finished)
    return {
        "compute": compute,
        "links": busy,
        "waiting": step - compute,
        "efficiency": compute / step,
        "inside": traffic.inside,
        "between": traffic.between,
    }


def simulate(name: str, images: int, given: Assumptions) -> Iterator[dict[str, Any]]:
    """Yield a row for every number of GPUs and way of sharing a model."""
    detector = build(name)
    side = get_config(name).image_size
    cost = executed_cost(detector, side, side, dtype=torch.bfloat16, run=run_detector)  # type: ignore[arg-type]
    model = units(detector, cost)
    assert _params(model) == trained(detector), "every parameter belongs to one unit"
    activations = (cost.train_bytes or 0) * images
    for gpus, size in product(GPUS, (4, 2)):
        now = replace(given, weight_bytes=size)
        ways = {"ddp": ddp(model, images, gpus, now), "fsdp": fsdp(model, images, gpus, now, hybrid=False)}
        if gpus > given.node:
            ways["hybrid"] = fsdp(model, images, gpus, now, hybrid=True)
        for way, row in ways.items():
            yield {
                "model": name,
                "params_millions": round(trained(detector) / 1e6, 1),
                "gradient_mib": round(gradient_bytes(detector, given) / 2**20, 1),
                "exchanged_in": {4: "float32", 2: "bfloat16"}[size],
                "gpus": gpus,
                "way": way,
                "images_per_gpu": images,
                **{f"{key}_ms": round(1000 * row[key], 2) for key in ("compute", "links", "waiting")},
                "efficiency": round(row["efficiency"], 4),
                **{f"sent_{key}_mib": round(row[key] / 2**20, 1) for key in ("inside", "between")},
                "state_gib": round(row["memory"] / 2**30, 2),
                "activations_gib": round(activations / 2**30, 2),
                "fits_80_gib": row["memory"] + activations < 80 * 2**30,
            }


def main() -> None:
    """Simulate, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.communication", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "communication.json", help="where the json goes"
    )
    options = parser.parse_args()
    given = Assumptions()
    rows = [row for name, images in MODELS.items() for row in simulate(name, images, given)]
    result = {
        "command": "python -m benchmarks.communication",
        "machine": machine(),
        "assumptions": asdict(given),
    }
    write_json(options.output, result | {"rows": rows})
    print(f"assumed, not measured: {asdict(given)}")
    for row in rows:
        print(
            f"{row['model']:22} {row['gpus']:3} GPUs {row['way']:7} {row['exchanged_in']:9} step "
            f"{row['compute_ms'] + row['waiting_ms']:7.1f} ms, waiting {row['waiting_ms']:7.1f} ms, "
            f"{row['efficiency']:6.1%}; sent {row['sent_inside_mib']:9,.0f} + {row['sent_between_mib']:7,.0f} MiB; "
            f"{row['state_gib']:6.1f} + {row['activations_gib']:5.1f} GiB"
        )


if __name__ == "__main__":
    main()
