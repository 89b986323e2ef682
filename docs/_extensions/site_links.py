"""Links of Markdown pages to files outside `docs/` lead to the pages that include these files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# The end of a link -> the page of the site.
PAGES = {
    "benchmarks/README": "benchmarks",
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    **{f"examples/{path.stem}.py": f"gallery/{path.stem}" for path in EXAMPLES.glob("*.py")},
}
# Files that the site has as they are, see `html_extra_path`.
FILES = {"CITATION.cff"}


def redirect(app: Any, doctree: nodes.document) -> None:
    """The event `doctree-read`."""
    links = [*doctree.findall(pending_xref), *doctree.findall(download_reference)]
    for node in links:
        target = str(node.get("reftarget", "")).removesuffix(".md")
        page = next((page for end, page in PAGES.items() if target.endswith(end)), None)
        if node.get("reftype") == "myst" and page is not None:
            told = {"refdomain": "doc", "reftype": "myst", "reftarget": page, "reftargetid": None}
            node.replace_self(pending_xref("", *node.children, **{**node.attributes, **told}))
        elif target in FILES:
            node.replace_self(nodes.reference("", "", *node.children, refuri=target))
