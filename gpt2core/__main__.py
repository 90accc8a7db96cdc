"""The command `gpt2core`, also as `python -m gpt2core`."""

from gpt2core.signals import exit_on_signals


def main() -> None:
    """Run the command; entry point of the console script."""
    exit_on_signals()
    from gpt2core.cli import main as run

    run()


if __name__ == "__main__":
    main()
