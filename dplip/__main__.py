"""``python -m dplip``: the command line."""

from dplip.cli import main

main()
