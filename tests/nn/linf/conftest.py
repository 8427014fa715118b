"""Both forms of the distances: torch's loops and the compiled one."""

import pytest

from dplip.nn.linf import kernel


@pytest.fixture(params=["torch", "compiled"])
def loops(request, monkeypatch) -> str:
    """Run with the torch form of the distances, and with the compiled one (the same form where no compiler is)."""
    monkeypatch.setattr(kernel, "WORTH", 0 if request.param == "compiled" else 2**62)
    return request.param
