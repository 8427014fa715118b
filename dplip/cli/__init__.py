"""The command line: ``dplip train``, ``dplip certify``, ``dplip account``, ``dplip audit``, ``dplip predict``,
``dplip report``, ``dplip schema``.
"""

from dplip.cli import account, audit, certify, predict, report, tables, train

__all__ = ["account", "audit", "certify", "predict", "report", "tables", "train"]
