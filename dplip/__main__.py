"""``python -m dplip``: the command line."""

from dplip.cli.main import main

main()
