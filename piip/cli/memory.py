"""The memory of training as ``piip info`` shows it."""

from collections.abc import Iterator
from pathlib import Path

from piip.cli.console import console, table
from piip.cli.llava import silence_transformers
from piip.cost.training import LEVELS, USABLE, Level
from piip.train.planning import Plan, plan_llava
from piip.train.recipe import TrainRecipe

GPUS = (1, 8, 64)
SIZES = (24, 80)
"""Memory of usual GPUs in GiB."""
GIB = 2**30


def show_memory(recipe: TrainRecipe, beside: Path, samples: int | None, length: int | None) -> None:
    """Print what training a PIIP-LLaVA takes of every GPU, for numbers of GPUs and levels of sharding."""
    silence_transformers()
    plan = plan_llava(recipe, beside, samples, length)
    title = f"Training, per GPU: {plan.samples} samples of {plan.length} tokens at most, in GiB"
    table(title, ["memory", "DDP", "FSDP"], list(_parts(plan)))
    heading = ["level", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)]
    table("All of it, in GiB", heading, [[name, *_totals(plan, level)] for level, name in LEVELS.items()])
    for size in SIZES:
        console().print(f"Fits into {size} GB: {', '.join(fitting(plan, size)) or 'nothing of this'}.")
    console().print(
        "DDP and FSDP are trainer.strategy ddp and fsdp; piip does not run ZeRO-1 and ZeRO-2. Counted is the worst "
        "case: every sample as long as it may be, all text learnt. One tenth of a GPU is left for CUDA, "
        "communication and gaps."
    )


def fitting(plan: Plan, size: int) -> Iterator[str]:
    """Yield the levels that fit into GPUs of a size in GiB, with the smallest number of GPUs."""
    for level, name in LEVELS.items():
        fits = [gpus for gpus in GPUS if plan.per_gpu(level, gpus) <= USABLE * size * GIB]
        if fits:
            yield f"{name} on {fits[0]} GPU{'s' * (fits[0] > 1)}" + (" or more" * (fits[0] < GPUS[-1]))


def _totals(plan: Plan, level: Level) -> list[str]:
    return [_gib(plan.per_gpu(level, gpus)) for gpus in GPUS]


def _parts(plan: Plan) -> Iterator[list[str]]:
    rows = {
        "weights that are not learnt": "fixed",
        "weights that are learnt": "learnt",
        "gradients": "gradients",
        "AdamW's moments": "moments",
        "activations": "activations",
    }
    for title, name in rows.items():
        yield [title, *(_gib(getattr(memory, name)) for memory in (plan.copied, plan.sharded))]
    yield ["gathered by FSDP at once", "-", _gib(plan.sharded.gathered)]


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f}"
