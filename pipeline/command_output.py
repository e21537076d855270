"""How a command ends: one line of JSON for programs, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def finish(document: Mapping[str, Any], code: int) -> int:
    """Print the JSON document that ends a command's output."""
    print(json.dumps(document, separators=(",", ":"), allow_nan=False), flush=True)
    return code
