"""Pieces of HTML as a strict reader sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"img", "br", "hr", "input", "meta", "link"}


@dataclass
class Read(HTMLParser):
    """text: all of it, joined by spaces.  elements: (name, attributes), in order.  parents: the name of what each is
    in.
    """

    text: str = ""
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.parents.append(self.open[-1] if self.open else "")
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def of(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a name."""
        return [attributes for tag, attributes in self.elements if tag == name]


def read(html: str) -> Read:
    """The piece, which must be closed, use nothing from elsewhere, run nothing, and set no text in black or white."""
    reader = Read()
    reader.feed(html)
    reader.close()
    assert not reader.open, f"not closed: {reader.open}"
    names = {name for name, _ in reader.elements}
    assert not names & {"script", "link", "style", "iframe", "object"}, names
    for name, attributes in reader.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), f"<{name}> runs {key}"
            assert key not in ("src", "href") or (value or "").startswith("data:"), f"<{name}> takes {value}"
            assert value not in ("black", "white", "#000", "#fff"), f"<{name} {key}>"
            assert "url(" not in (value or "")
            assert key != "style" or "color: black" not in (value or "")
    reader.text = " ".join(reader.text.split())
    return reader
