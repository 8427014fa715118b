"""What a command printed, a refusal's sentence, and the options of a quick run."""

from typing import NamedTuple


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def refused(ran: Ran) -> str:
    """The sentence of a refusal."""
    assert ran.code == 2
    assert "Traceback" not in ran.out + ran.err
    return ran.err


QUICK = ("--data", "digits", "--epochs", 2, "--no-progress")
