"""Shows links from pages to repository files as paths, because the site lacks these files; checks that they exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\[([^\]\n]+)\]\((?!\w+:|#)([^)\s#]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Replace links to files outside the documentation by their paths."""
    docs = Path(config["docs_dir"])
    root = docs.parent

    def replace(found: re.Match[str]) -> str:
        text, target = found.groups()
        path = Path(page.file.abs_src_path).parent.joinpath(target).resolve()
        if path.is_relative_to(docs) or not path.is_relative_to(root):
            return found.group(0)
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_path} links to {target}, which is not there")
        shown = f"`{path.relative_to(root)}`"
        return shown if text.strip("`") in shown else f"{text} ({shown})"

    return _LINK.sub(replace, markdown)
