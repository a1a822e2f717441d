"""Run the command ``tfspark`` as ``python -m tfspark``."""

from __future__ import annotations

import sys

from tfspark.cli import main

sys.exit(main())
