"""`gpt2core report`: the results of the pipeline as a page."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core import config, files


@click.command(short_help="Write the results of the pipeline as one page.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("report/index.html"), show_default=True,
    help="The file to write.",
)  # fmt: skip
def report(out: Path) -> None:
    """Write one self-contained HTML page with the results of the pipeline.

    It has curves, texts during training, a look inside the pretrained model, tables of results before and after
    fine-tuning, responses with their scores, and links to the MLflow runs. It opens offline and shows the files that
    are in the project now.
    """
    from gpt2core.report.pipeline import report_page

    files.write_text(out, report_page(config.project_root()))
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")
