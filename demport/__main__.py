"""`python -m demport` is `demport`."""

from pipeline.cli import main

main()
