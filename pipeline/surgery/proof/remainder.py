"""What stays of a network though it is dead or constant, and why: lines for a user who expected it gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.surgery.channels.analysis import OUTPUT, WHOLE


def remainder(certificate: Mapping[str, Any], align: int | str) -> Iterator[str]:
    """A line on dead channels that are not cut, one where the network is not followed at all, and one on constant
    channels that an operation asks for, those of the outputs apart. `align` as surgery.align."""
    counts = certificate["channels"]
    if dead := counts["dead"] - (counts["before"] - counts["after"]):
        line = f"{dead} dead channel{'s stay' if dead > 1 else ' stays'} (kept_dead in certificate.json)"
        if align == 1:
            yield f"{line}: layers that must be equally wide, or a layer's last one"
        else:
            yield f"{line}: widths are kept as surgery.align={align} asks; --set surgery.align=1 cuts to the last"
    for row in certificate["frozen"]:
        if row["where"] == WHOLE:
            yield f"note: nothing is cut, for {row['reason']}"
    reasons: Counter[str] = Counter()
    for row in certificate["constants"]:
        reasons.update(row["because"])
    del reasons[OUTPUT]
    if reasons:
        text = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        yield f"{reasons.total()} constant channels stay (constants in certificate.json): {text}"
