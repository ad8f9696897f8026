"""``python -m piip``."""

import sys

from piip.cli import main

sys.exit(main())
