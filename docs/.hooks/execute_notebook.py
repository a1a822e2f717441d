"""Execute the quickstart notebook and store its outputs, so that GitHub shows table and curves: ``make notebook``.

The standard error of Spark's JVM and of TensorFlow is left out: on a cluster it is in the executors' logs.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "jobs" / "notebooks" / "quickstart.ipynb"


def main() -> None:
    """Execute the notebook and write it back without standard error."""
    notebook = nbformat.read(NOTEBOOK, 4)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    with tempfile.TemporaryDirectory() as directory:
        NotebookClient(
            notebook, timeout=600, record_timing=False, resources={"metadata": {"path": directory}}
        ).execute()
    for cell in notebook.cells:
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
