"""Common parts of the servers: they serve this machine only, load nothing, and report errors in a sentence."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import click
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gpt2core.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost")
CLOSING_S = 1  # time for open answers after Ctrl-C


def bare_app(host: str = LOOPBACK[0]) -> FastAPI:
    """Return an application without routes. On the loopback address, it refuses requests under other host names."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # these pages would load scripts from other servers
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, row['loc'][1:]))}: {row['msg']}" for row in error.errors()]
        return JSONResponse({"error": "; ".join(problems)}, status_code=422)

    return app


def serve(app: FastAPI, host: str, port: int, lines: Iterable[str], *, open_browser: bool) -> None:
    """Serve a page until Ctrl-C. Raises UserError if the address cannot be served.

    Args:
        app: the application.
        host: the address.
        port: 0 takes a free one.
        lines: printed above the page's address when it is ready.
        open_browser: also open the page.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{host}:{port}: cannot be served ({reason}); --port 0 takes a port that is free") from None
    with listening:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=CLOSING_S, lifespan="off")
        listening.listen()
        for line in (*lines, f"{address}  (Ctrl-C ends it)"):
            click.echo(line)
        if open_browser:
            click.launch(address)
        uvicorn.Server(config).run(sockets=[listening])
