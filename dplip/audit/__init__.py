"""Attacks on the library's own promises, which give lower bounds and never proofs."""

from dplip.audit.canary import CanaryAudit, audit_noise
from dplip.audit.finished_run import Row, audit_run, table, write_audit
from dplip.audit.gradient import GradientAudit, gradient_search
from dplip.audit.one_run import one_run
from dplip.audit.replay import ReplayAudit, replay
from dplip.audit.statistics import canary_epsilon, gaussian_epsilon, one_run_epsilon

__all__ = [
    "CanaryAudit",
    "GradientAudit",
    "ReplayAudit",
    "Row",
    "audit_noise",
    "audit_run",
    "canary_epsilon",
    "gaussian_epsilon",
    "gradient_search",
    "one_run",
    "one_run_epsilon",
    "replay",
    "table",
    "write_audit",
]
