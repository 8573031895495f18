"""``python -m loradash`` is the same as ``loradash``."""

from loradash.cli import main

main()
