"""``python -m tfspark.compat PROGRAM [ARGUMENT ...]``: run a program that imports tensorflowonspark, on tfspark."""

from __future__ import annotations

import os
import runpy
import sys

from tfspark.compat import install


def main() -> None:
    """Run the program as ``__main__``, with its own arguments."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stderr.write("usage: python -m tfspark.compat PROGRAM [ARGUMENT ...]\n")
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    install()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
