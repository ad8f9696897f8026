"""``piip list``."""

from piip.cli.console import table


def catalog(pattern: str = "*") -> list[str]:
    """List the published configurations and a few of our own.

    Args:
        pattern: Shell-style pattern, such as 'piip_tsb*'; a word without * matches anywhere.
    """
    from piip.presets import get_config, list_models

    names = list_models(pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*")
    rows = []
    for name in names:
        config = get_config(name)
        branches = [f"{branch.arch} @ {branch.image_size}" for branch in reversed(config.branches)]
        rows.append([name, ", ".join(branches), config.merging.kind])
    table(f"{len(names)} models", ["name", "branches", "merging"], rows, texts=3)
    return names
