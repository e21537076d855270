"""How a command ends: sentences for people on stderr, one line of JSON for programs on stdout, an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from runtime.errors import plain


def finish(document: Mapping[str, Any], code: int) -> int:
    """Print the JSON document that ends a command's output."""
    print(json.dumps(document, separators=(",", ":"), allow_nan=False), flush=True)
    return code


def judged(document: Mapping[str, Any], verdict: Mapping[str, Any] | None, code: int) -> int:
    """Tell people the verdict's gates and the report before the JSON document."""
    for gate in verdict["gates"] if verdict else ():
        print(plain(f"{gate['status']:12}  {gate['name']}: {gate['reason']}"), file=sys.stderr)
    if "report" in document:
        print(f"report: {document['report']}", file=sys.stderr)
    return finish(document, code)
