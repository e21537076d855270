"""A rendered report as the tests read it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """What the tests ask of a page: its text without contents and plots, the addresses it names, its open tags."""

    VOID = frozenset({"meta", "link", "img", "source", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.addresses, self.scripts, self.open = "", list[str](), 0, list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element of an SVG that closes itself."""
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"svg", "style", "nav"} & {*self.open}:
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def page(run: Path) -> Page:
    return Page((run / "report.html").read_text("utf-8"))


def document(run: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    loaded: dict[str, Any] = json.loads((run / "report.json").read_text("utf-8"), parse_constant=refuse)
    return loaded


def section(text: str, title: str) -> str:
    return text.split(title, 1)[1]
