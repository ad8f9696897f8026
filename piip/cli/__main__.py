"""``python -m piip.cli``."""

import sys

from piip.cli import main

sys.exit(main())
