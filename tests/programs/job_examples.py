"""Run the examples of `tfspark.jobs` in a process of its own: they stop its session and handle its signals."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    import docstring_examples
    from conftest import QUIET

    from tfspark import jobs

    with tempfile.TemporaryDirectory() as output:
        namespace = {**vars(jobs), "__name__": "__main__", "output": output}
        # Settings of the session, which the example leaves out.
        os.environ["PYSPARK_SUBMIT_ARGS"] = " ".join([*(f"--conf {k}={v}" for k, v in QUIET.items()), "pyspark-shell"])
        for name, o in docstring_examples.public().items():
            if name.startswith("tfspark.jobs."):
                docstring_examples.run(name, o, namespace)
                sys.stdout.write(f"{name}\n")
    logging.shutdown()


if __name__ == "__main__":
    main()
