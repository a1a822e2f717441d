"""``python -m tfspark`` is the command ``tfspark``."""

from __future__ import annotations

import sys

from tfspark.cli import main

sys.exit(main())
