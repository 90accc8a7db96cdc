"""`python -m gpt2core` is the command `gpt2core`."""

from gpt2core.cli import main

main()
