"""An OpenAI-compatible server: ``python -m piip.llava.serve FOLDER``.

This is ``transformers serve`` with all its options (``--help`` shows them). That command of transformers 5.23
imports no package that could register a type, and it goes by a table of names into which registering a type does
not write; both are done here.
"""

import sys
from collections.abc import Sequence

from transformers.models.auto import modeling_auto

from piip.errors import require
from piip.llava import PiipLlavaConfig, PiipLlavaForConditionalGeneration


def announce() -> None:
    """Write PIIP-LLaVA into the table by which the server tells what a model is and how it is loaded."""
    names = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    names[PiipLlavaConfig.model_type] = PiipLlavaForConditionalGeneration.__name__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server until it is stopped.

    Args:
        arguments: The folder and the options of ``transformers serve``; those of the command line by default.

    Raises:
        MissingExtraError: A library of the server is not installed.
    """
    for module in ("fastapi", "uvicorn", "openai"):
        require(module, "serve", "The server")
    from transformers.cli.transformers import app

    announce()
    given = sys.argv[1:] if arguments is None else arguments
    app(["serve", *given], prog_name="python -m piip.llava.serve")


if __name__ == "__main__":
    main()
