"""What the pages' servers share: they talk to this machine alone, fetch nothing, answer a mistake in a sentence."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gpt2core.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost")
CLOSING_S = 1  # what an answer that is being written gets at Ctrl-C


def bare_app(host: str = LOOPBACK[0]) -> FastAPI:
    """An application without routes.

    Args:
        host: the address that is served. On this machine's own, a page of a foreign name that points here is refused.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # their pages would load scripts from elsewhere
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)
    async def misshapen(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, row['loc'][1:]))}: {row['msg']}" for row in error.errors()]
        return JSONResponse({"error": "; ".join(problems)}, status_code=422)

    return app


def serve(app: FastAPI, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        port: 0 takes one that is free.
        on_ready: called with the page's address as soon as it answers.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{host}:{port}: cannot be served ({reason}); --port 0 takes a port that is free") from None
    with listening:
        host_in_url = f"[{host}]" if ":" in host else host
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=CLOSING_S, lifespan="off")
        listening.listen()
        on_ready(f"http://{host_in_url}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])
