"""What a page is made of, and its two forms: HTML for people, Markdown for a pull request, one template each.

A section is a list of blocks; a block knows neither form. Text that comes from files is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_MARKDOWN = str.maketrans(
    {**{mark: f"\\{mark}" for mark in "\\`*_[]|#~"}, "<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", **_CONTROL}
)


@dataclass(frozen=True)
class Cell:
    """`more` stands under the text, paler; `kind` is a CSS class: number, wide, code, or a verdict. `bars` are
    (CSS class, share of the cell's width)."""

    text: str
    more: str = ""
    kind: str = ""
    bars: Sequence[tuple[str, float]] = ()


Rows = list[list[Cell | str]]


@dataclass(frozen=True)
class Table:
    """The first column names the row. `numbers` are columns aligned to the right; without `heads` it is a list of
    facts. With a `summary` it is folded under that line, and is no part of the Markdown."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numbers: Sequence[int] = ()
    summary: str = ""
    form: ClassVar[str] = "table"

    def cells(self) -> list[list[tuple[str, Cell]]]:
        """(head, cell) of every row."""
        heads = self.heads or [""] * max(map(len, self.rows), default=0)
        return [
            [
                (head, cell if isinstance(cell, Cell) else Cell(cell, kind="number" if at in self.numbers else ""))
                for at, (head, cell) in enumerate(zip(heads, row, strict=True))
            ]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Text:
    """A paragraph; kinds: "" plain, "source" where figures come from (not in Markdown), "absent", "remark"."""

    text: str
    kind: str = ""
    form: ClassVar[str] = "text"


@dataclass(frozen=True)
class Heading:
    text: str
    form: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Picture:
    """A plot as SVG whose colours are the page's CSS variables; `alt` says what it shows. `key`: (CSS class, label)."""

    title: str
    svg: str
    alt: str
    key: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Plots:
    """Beside each other where the screen is wide; None are left out. Not in Markdown."""

    pictures: Sequence[Picture | None]
    form: ClassVar[str] = "plots"


@dataclass(frozen=True)
class Photo:
    address: str
    title: str
    more: str
    alt: str


@dataclass(frozen=True)
class Photos:
    photos: Sequence[Photo]
    wide: bool = False
    """Of several pictures side by side each."""
    form: ClassVar[str] = "photos"


Block = Table | Text | Heading | Plots | Photos


@dataclass(frozen=True)
class Section:
    """`brief`: it is part of the Markdown too."""

    title: str
    blocks: Sequence[Block]
    brief: bool = False

    @property
    def anchor(self) -> str:
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Page:
    """`top` is the first screen, which ends with `conclusion`."""

    title: str
    status: str
    headline: str
    top: Sequence[Block]
    conclusion: str
    sections: Sequence[Section]


def html(page: Page) -> str:
    from markupsafe import Markup

    css = Markup((TEMPLATES / "style.css").read_text("utf-8"))
    return environment().get_template("page.html.j2").render(page=page, css=css)


def markdown(page: Page) -> str:
    return environment().get_template("page.md.j2").render(page=page)


def environment() -> jinja2.Environment:
    """HTML is escaped, Markdown text goes through `md`, an unknown name is an error."""
    import jinja2
    from markupsafe import Markup

    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"md": escape_markdown, "svg": Markup, "plain": printable}
    return pages


def escape_markdown(text: object) -> str:
    """On one line, so that no text of a file begins a heading, a table or a tag."""
    return " ".join(str(text).translate(_MARKDOWN).split("\t"))


def printable(text: object) -> str:
    """Without control characters, which a terminal would obey and a page cannot show."""
    return str(text).translate(_CONTROL)
