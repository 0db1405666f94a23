"""The command line `raydml ...`: data on stdout, everything else on stderr; torch and ray load inside the commands.

Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted (state kept).
"""

from raydml.cli.app import app, main

__all__ = ["app", "main"]
