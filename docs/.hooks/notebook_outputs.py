"""Shows outputs of the quickstart notebook in pages: ``<!-- output of: SOURCE -->`` names a cell by its first line."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

NOTEBOOK = Path("jobs/notebooks/quickstart.ipynb")

_MARKER = re.compile(r"^<!-- output of: (.+?) -->$", re.M)


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Replace markers by the outputs of the committed notebook, so that a page shows what the code gave."""
    if not _MARKER.search(markdown):
        return markdown
    notebook = json.loads((Path(config["docs_dir"]).parent / NOTEBOOK).read_text())
    cells = {"".join(c["source"]).partition("\n")[0]: c for c in notebook["cells"] if c["cell_type"] == "code"}
    return _MARKER.sub(lambda found: _shown(cells[found[1]]["outputs"]), markdown)


def _shown(outputs: list[dict[str, Any]]) -> str:
    """Return outputs as HTML blocks; an empty line would end such a block."""
    blocks = []
    for output in outputs:
        if output["output_type"] == "stream":
            blocks.append(f"<pre><code>{escape(''.join(output['text']).strip())}</code></pre>")
        else:
            blocks.append("".join(output["data"]["text/html"]))
    return '<div class="output">' + "\n".join(re.sub(r"\n\s*\n", "\n", b) for b in blocks) + "</div>"
