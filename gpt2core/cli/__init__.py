"""The command `gpt2core`, with a module per subcommand, or per pair of subcommands that belong together.

Exit codes: 0 success, 1 an error in the input, 2 an error in the command line, 130 Ctrl-C.
"""

from __future__ import annotations

from typing import Any

import click

from gpt2core import __version__
from gpt2core.cli.classify import classify
from gpt2core.cli.compare import compare
from gpt2core.cli.convert import convert, export_openai, merge
from gpt2core.cli.doctor import doctor
from gpt2core.cli.evaluate import evaluate
from gpt2core.cli.experiments import seeds, sync_mlflow
from gpt2core.cli.generate import generate, respond
from gpt2core.cli.inspect import inspect
from gpt2core.cli.new import new
from gpt2core.cli.pages import rate, ui
from gpt2core.cli.params import params, profile
from gpt2core.cli.perplexity import perplexity
from gpt2core.cli.summary import report, summary
from gpt2core.cli.verify import verify
from gpt2core.runtime import stage_main
from gpt2core.signals import interrupted


class Commands(click.Group):
    """A group whose commands handle Ctrl-C; click would print `Aborted!` and exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            interrupted(error)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gpt2core")
def cli() -> None:
    """Use the models of the pipeline (GPT-2 from scratch). `dvc repro` trains them."""


COMMANDS = (
    generate, classify, respond, compare, inspect, perplexity, ui, convert, export_openai, merge, verify, summary,
    report, new, doctor, params, profile, sync_mlflow, seeds, rate, evaluate,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command."""
    stage_main(lambda: cli.main(prog_name="gpt2core"))
