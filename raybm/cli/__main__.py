"""`python -m raybm.cli`, for where the `raybm` script is not on the PATH."""

from raybm.cli import main

main()
