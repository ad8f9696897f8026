"""``piip env``."""

import json
from typing import Any

from piip.cli.console import console


def env() -> dict[str, Any]:
    """Show versions and hardware, for bug reports."""
    from piip.train.environment import environment

    found = environment()
    console().print(json.dumps(found, indent=2), markup=False)
    return found
