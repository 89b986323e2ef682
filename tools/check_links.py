"""Check that each link inside a built site leads somewhere: `python tools/check_links.py FOLDER`.

Pages, files and anchors are looked up in the folder; `make linkcheck` asks for addresses outside.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.links.append(value)


def broken(root: Path) -> tuple[int, list[str]]:
    """How many links there are inside the site, and those that lead nowhere."""
    pages = {path: Page(path) for path in root.rglob("*.html")}
    count, found = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{path.relative_to(root)}: {link}: there is no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{path.relative_to(root)}: {link}: there is no such anchor")
    return count, found


def main() -> int:
    root = Path(sys.argv[1]).resolve()
    count, found = broken(root)
    print("\n".join(found) or f"{root}: {count} links inside the site, none broken")
    return bool(found) or count == 0


if __name__ == "__main__":
    sys.exit(main())
