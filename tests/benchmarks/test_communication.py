"""The simulated traffic against what processes really exchange, and against sums done by hand."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.communication import Assumptions, Unit, ddp, fsdp, gradient_bytes, trained, units
from piip.cost import executed_cost, run_detector
from piip.network import PIIP
from piip.tasks.detection import RCNN, RCNNConfig
from tests.helpers import tiny_config

GIVEN = Assumptions()
UNITS = [Unit("embed", 3_000_000, 1e12, False), *(Unit(str(n), 10_000_000, 2e12, True) for n in range(4))]


def count_bytes(rank: int, port: int, output: Path) -> None:
    """Make two steps in one of two processes and write what the second exchange is handed."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    sizes = []

    def hook(state, bucket):
        sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(state, bucket)

    model = DistributedDataParallel(PIIP(tiny_config()), bucket_cap_mb=1)
    model.register_comm_hook(None, hook)
    for _ in range(2):  # buckets are only cut after the first step
        sizes.clear()
        sum(level.sum() for level in model(torch.randn(1, 3, 128, 128))).backward()
    torch.save({"sizes": sizes}, output / f"{rank}.pt")
    dist.destroy_process_group()


def test_gradient_bytes_are_what_processes_exchange(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(count_bytes, args=(port, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["sizes"] for rank in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) > 1
    assert sum(found[0]) == gradient_bytes(PIIP(tiny_config()), GIVEN)


def test_units_hold_every_parameter_and_all_operations_of_the_blocks():
    with torch.device("meta"):
        network = PIIP(tiny_config())
        config = RCNNConfig(("a", "b"), network.out_channels, strides=tuple(map(int, network.strides)))
        detector = RCNN(config, network)
    cost = executed_cost(detector, 128, 128, run=run_detector)
    found = units(detector, cost)
    assert sum(unit.params for unit in found) == trained(detector)
    assert sum(unit.is_block for unit in found) == 6
    left_out = sum(2 * cost[name].macs for name in ("image", "other") if name in {p.name for p in cost.parts})
    assert sum(unit.operations for unit in found) == pytest.approx(2 * cost.macs - left_out)


def test_bytes_sent_by_copies():
    size = 43_000_000 * 4
    one_node, many = ddp(UNITS, 2, 8, GIVEN), ddp(UNITS, 2, 64, GIVEN)
    assert one_node["inside"] == pytest.approx(2 * 7 / 8 * size)
    assert one_node["between"] == 0
    assert many["inside"] == pytest.approx(2 * 7 / 8 * size)
    assert many["between"] == pytest.approx(2 * 7 / 8 * size / 8)


def test_bytes_sent_by_shards():
    blocks, rest = 40_000_000 * 4, 3_000_000 * 4
    shards, hybrid = fsdp(UNITS, 2, 64, GIVEN, hybrid=False), fsdp(UNITS, 2, 64, GIVEN, hybrid=True)
    for row in (shards, hybrid, fsdp(UNITS, 2, 8, GIVEN, hybrid=False)):
        assert row["inside"] == pytest.approx(7 / 8 * (3 * blocks + 2 * rest))
    assert shards["between"] == pytest.approx(7 / 8 * (3 * blocks + 2 * rest) / 8)
    assert hybrid["between"] == pytest.approx(2 * 7 / 8 * (blocks + rest) / 8)
    assert shards["memory"] < hybrid["memory"] < ddp(UNITS, 2, 64, GIVEN)["memory"]


def test_nothing_waits_for_links_without_a_limit():
    fast = Assumptions(nvlink=1e30, infiniband=1e30, start=0, hop=0)
    rows = [ddp(UNITS, 2, 64, fast), *(fsdp(UNITS, 2, 64, fast, hybrid=hybrid) for hybrid in (True, False))]
    for row in rows:
        assert row["compute"] == pytest.approx(3 * 2 * 9e12 / (790e12 * 0.45))
        assert row["waiting"] == pytest.approx(0, abs=1e-12)


def test_slow_links_are_waited_for_but_for_what_runs_meanwhile():
    slow = Assumptions(nvlink=1e9, start=0, hop=0, reached=1)
    row = ddp(UNITS, 2, 8, slow)
    whole = 2 * 7 / 8 * 43_000_000 * 4 / 1e9
    assert row["links"] == pytest.approx(whole)
    first_block = 2 * 2 * 2e12 / (790e12 * 0.45)  # until the first bucket is full
    backward = 2 * row["compute"] / 3
    assert row["waiting"] == pytest.approx(whole - (backward - first_block))
