"""`gpt2core ui`"""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core.cli import options


@click.command(short_help="Try the models on a page in the browser.")
@click.argument("directories", metavar="[DIR]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to serve. With another than this machine's own, everyone who reaches it can use the models.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes a port that is free."
)
@options.dtype
@click.option("--open", "open_browser", is_flag=True, help="Also open the page in the browser.")
def ui(directories: tuple[Path, ...], host: str, port: int, dtype: str, open_browser: bool) -> None:
    """Serve a page to try the models: generate, classify, respond, look inside. Ctrl-C ends it.

    Each DIR is a model directory, or a directory in which some lie; without any it is models/. The page fetches nothing
    from elsewhere, and what is typed stays on this machine.
    """
    options.needs("ui", "fastapi", "uvicorn")
    from gpt2core.ui.models import Models, find
    from gpt2core.ui.server import make_app
    from gpt2core.ui.serving import serve

    found = find(directories or (Path("models"),))

    def on_ready(address: str) -> None:
        for each in found:
            click.echo(f"{each.kind:<15} {each.name}")
        click.echo(f"{address}  (Ctrl-C ends it)")
        if open_browser:
            click.launch(address)

    serve(make_app(Models(found, dtype), host), host, port, on_ready)
