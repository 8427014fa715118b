"""A proof, on the operators that run in a forward pass, that examples do not mix."""

from dplip.separation.layout import examples_first
from dplip.separation.recomputed import current
from dplip.separation.rows import Rows
from dplip.separation.signature import Signature, Template
from dplip.separation.watch import Watch

__all__ = ["Rows", "Signature", "Template", "Watch", "current", "examples_first"]
