"""Common parts of the servers: they serve this machine only, load nothing, and report errors in a sentence."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import click
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2core.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost")
CLOSING_S = 1  # time for open answers after Ctrl-C
MAX_BODY_BYTES = 16 << 20  # of a request


def bare_app(host: str = LOOPBACK[0]) -> FastAPI:
    """Return an application without routes. On the loopback address, it refuses requests under other host names."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # these pages would load scripts from other servers
    app.add_middleware(_BoundedBodies)
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])

    for kind, answer in ((UserError, _user_error), (OSError, _system_error), (HTTPException, _http_error)):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    return app


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    return _error(str(error), 400)


async def _system_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    return _error(f"{error.filename or 'a file'}: {error.strerror or error}", 500)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _error(str(error.detail), error.status_code)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, row['loc'][1:]))}: {row['msg']}" for row in error.errors()]
    return _error("; ".join(problems), 422)


def _error(message: str, status: int) -> JSONResponse:
    """Return an error as JSON. A text from a client may have half a surrogate pair, which UTF-8 cannot express."""
    return JSONResponse({"error": message.encode(errors="backslashreplace").decode()}, status_code=status)


class _BoundedBodies:
    """Middleware that refuses a request whose body is longer than 16 MiB, and reads no more of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        n_bytes, is_refused = 0, False

        async def bounded_receive() -> Message:
            nonlocal n_bytes, is_refused
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes <= MAX_BODY_BYTES:
                return message
            is_refused = True
            error = {"error": f"the request has more than {MAX_BODY_BYTES:,} bytes; send a shorter text"}
            await JSONResponse(error, status_code=413, headers={"Connection": "close"})(scope, receive, send)
            return {"type": "http.disconnect"}

        async def send_unless_refused(message: Message) -> None:
            if not is_refused:
                await send(message)

        await self._app(scope, bounded_receive, send_unless_refused)


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
