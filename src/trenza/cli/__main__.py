"""`python -m trenza.cli`: the command `trenza`, for whoever starts it without looking for the script."""

from trenza.cli.main import main

main()
