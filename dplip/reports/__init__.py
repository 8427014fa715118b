"""Reports that a person signs: one page of HTML and a model card, made of what a run wrote to its folder."""

from dplip.reports.pages import write_pages

__all__ = ["write_pages"]
