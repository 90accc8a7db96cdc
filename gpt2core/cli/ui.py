"""`gpt2core ui`: a page in the browser to try the models."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command(short_help="Try the models on a page in the browser.")
@click.argument("directories", metavar="[DIR]...", nargs=-1, type=options.PATH)
@click.option(
    "--host", default="127.0.0.1", show_default=True,
    help="The address to serve. On another address than the default, everyone who reaches it can use the models.",
)  # fmt: skip
@options.port(7860)
@options.dtype
@options.open_browser
def ui(directories: tuple[Path, ...], host: str, port: int, dtype: str, open_browser: bool) -> None:
    """Serve a page to try the models: generate, classify, respond, look inside. Ctrl-C ends it.

    Each DIR is a model directory or a folder with model directories; the default is models/. The page loads nothing
    from other servers, and your texts stay on this machine.
    """
    options.require_extra("ui", "fastapi", "uvicorn")
    from gpt2core.ui.models import Models, find_models
    from gpt2core.ui.server import make_app

    models = find_models(directories or (Path("models"),))
    lines = [f"{model.kind:<15} {model.name}" for model in models]
    options.serve_page(make_app(Models(models, dtype), host), host, port, lines, open_browser=open_browser)
