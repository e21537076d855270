"""`python -m pipeline.cli` is `demport`."""

from pipeline.cli import main

main()
