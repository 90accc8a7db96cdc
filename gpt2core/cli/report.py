"""`gpt2core report`"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core import config, files


@click.command(short_help="Everything the pipeline made, as one page.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report/index.html"),
    show_default=True,
    help="The file to write.",
)
def report(out: Path) -> None:
    """Write one self-contained HTML page of what the pipeline made.

    Curves, texts through training, what goes on inside the pretrained model, tables of before and after, answers with
    their scores, and links to the MLflow runs. It opens offline and shows what lies in the project now.
    """
    from gpt2core.report.pipeline import report_page

    files.write_text(out, report_page(config.project_root()))
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")
