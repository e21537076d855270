"""A document is read strictly; each kind of damage is one line that names the file, the place and the remedy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from runtime.documents import Kind, Section, seal_of, write_sealed
from runtime.errors import UserError

KIND = Kind("a card", "write it again", 64, links=False)


class Card(Section):
    """A document of two keys."""

    name: str
    count: int = 0


def test_a_card_round_trips_with_its_seal(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_sealed(path, {"name": "a", "count": 2})
    content = json.loads(path.read_text())
    seal = content.pop("seal")
    assert seal == hashlib.sha256(b'{"count":2,"name":"a"}').hexdigest() == seal_of({**content, "seal": "x"})
    path.write_text('{"name": "a", "count": 2}')
    assert KIND.document(path, Card) == Card(name="a", count=2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "card.json is not JSON: EOF"),
        ('{"name": "a", "count": NaN}', "card.json is not JSON"),
        ('{"name": "a", "count": true}', "card.json: count: Input should be a valid integer"),
        ('{"name": "a", "other": 1}', "card.json: other: Extra inputs"),
        ("[]", "card.json: content: Input should be"),
        (" " * 65, r"card.json cannot be read \(over 64 bytes"),
        (None, r"card.json cannot be read \(No such file"),
    ],
)
def test_each_damage_is_one_line(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "card.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=problem) as caught:
        KIND.document(path, Card)
    assert (caught.value.expected, caught.value.remedy) == ("a card", "write it again")


def test_a_link_and_another_schema_are_refused(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"name": "a"}')
    (tmp_path / "link.json").symlink_to(tmp_path / "card.json")
    with pytest.raises(UserError, match=r"link.json cannot be read \(no plain file"):
        KIND.document(tmp_path / "link.json", Card)
    assert KIND.schema(tmp_path, {"schema": 3}, 3) == {"schema": 3}
    for value, shown in (({"schema": True}, "a bool"), ([], "a NoneType"), ({"schema": 2}, "2")):
        with pytest.raises(UserError, match=f"has the schema {shown}; schema 3"):
            KIND.schema(tmp_path, value, 3)
