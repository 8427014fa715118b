"""The command line: ``dplip train``, ``dplip certify``, ``dplip account``, ``dplip audit``, ``dplip schema``."""

from dplip.cli import account, audit, certify, tables, train

__all__ = ["account", "audit", "certify", "tables", "train"]
