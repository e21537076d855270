"""What a user can cause, said in one line: what was found; what was expected; what to do."""

EXIT_PASS = 0
EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_INCONCLUSIVE = 3
EXIT_INTERRUPTED = 130
LONGEST = 1200  # characters of what was found


def plain(text: str) -> str:
    """`text` in one line that cannot steer a terminal, whatever a file or a server put into it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """As `plain`, with white space of any kind as single spaces."""
    return plain(" ".join(text.split()))


class UserError(Exception):
    """A problem the user can mend; the command line prints it as one line and exits with 2.

    The three parts are clauses without a final stop, e.g.
    `UserError("weights.safetensors is 12 bytes long", "a safetensors file", "export the weights again")`.
    """

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        if len(found) > LONGEST:  # a file may have put anything into it
            found = f"{found[: LONGEST // 2]} ... {found[-LONGEST // 2 :]}"
        super().__init__(f"{found}; {expected}; {remedy}")
        self.found, self.expected, self.remedy = found, expected, remedy
