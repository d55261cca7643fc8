"""Checks a built site: `python docs/check_site.py OUT` lists broken links and loads from the net, and then fails.

A link is broken if its file is missing, or the anchor after #. Links to other sites are not followed,
but a page that loads something from one (script, style, picture) does not work without a network, so it is listed.
"""

import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

LOADS = ("script", "link", "img", "iframe", "source", "video")


@cache
def tags(page: Path) -> list[Tag]:
    """All elements of a page."""
    return BeautifulSoup(page.read_text(encoding="utf8"), "html.parser").find_all(True)


@cache
def anchors(page: Path) -> set[str]:
    """The places of a page that a link can name after #; the page itself is the empty one."""
    return {name for tag in tags(page) for name in (tag.get("id"), tag.get("name")) if name} | {""}


def complaint(page: Path, tag: Tag, link: str) -> str:
    """What is wrong with a link of a page, or nothing."""
    parts = urlsplit(link)
    if parts.scheme == "data":
        return ""
    if parts.scheme or parts.netloc:
        return f"loads {link} from the net" if tag.name in LOADS else ""
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return f"links to {link}, which is not there"
    if target.suffix == ".html" and unquote(parts.fragment) not in anchors(target):
        return f"links to {link}, which has no such place"
    return ""


def check(out: Path) -> tuple[int, list[str]]:
    """The number of links in all pages, and a sentence for each that is wrong."""
    links = [
        (page, tag, tag[attribute])
        for page in sorted(out.rglob("*.html"))
        for tag in tags(page)
        for attribute in ("href", "src")
        if tag.get(attribute)
    ]
    found = [(page, complaint(page, tag, link)) for page, tag, link in links]
    return len(links), [f"{page.relative_to(out)} {told}" for page, told in found if told]


if __name__ == "__main__":
    number, wrong = check(Path(sys.argv[1]).resolve())
    print(*wrong, f"{number} links, {len(wrong)} wrong", sep="\n")
    sys.exit(1 if wrong or not number else 0)
