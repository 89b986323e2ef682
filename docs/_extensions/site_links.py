"""Links of Markdown pages to files outside `docs/` lead to the pages that include these files."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref

PAGES = {
    "benchmarks/README": "benchmarks",
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
}
# Files that the site has as they are, see `html_extra_path`.
FILES = {"CITATION.cff"}


def redirect(app: Any, doctree: nodes.document) -> None:
    """The event `doctree-read`."""
    for node in list(doctree.findall(pending_xref)):
        target = str(node.get("reftarget", "")).removesuffix(".md")
        page = next((page for end, page in PAGES.items() if target.endswith(end)), None)
        if node.get("reftype") == "myst" and page is not None:
            node.update_all_atts({"refdomain": "doc", "reftarget": page}, replace=True)
        elif target in FILES:
            node.replace_self(nodes.reference("", "", *node.children, refuri=target))
