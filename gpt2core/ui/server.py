"""The server of the page to try models: JSON requests, and answers in JSON or lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.inference import Sampling, TextStream, stream
from gpt2core.inference.classify import classify as predict_classes
from gpt2core.inference.text import MAX_STOP_CHARS
from gpt2core.inspect import inspect
from gpt2core.report.inside import inspection_page
from gpt2core.report.page import render
from gpt2core.tokenizer import Tokenizer
from gpt2core.ui.models import CLASSIFIER, INSTRUCT, Models
from gpt2core.ui.serving import LOOPBACK, bare_app

LONGEST_TEXT = 1_000_000  # characters
MAX_NEW_TOKENS = 100_000
MAX_TEXTS = 1_000


class ModelRequest(BaseModel):
    """The common part of all requests; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")
    model: str


class Generate(ModelRequest):
    """A request to continue a text."""

    prompt: str = Field("", max_length=LONGEST_TEXT)
    max_new_tokens: int = Field(100, ge=1, le=MAX_NEW_TOKENS)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = Field(0, ge=0, lt=2**63)
    stop: str = Field("", max_length=MAX_STOP_CHARS)


class Classify(ModelRequest):
    """A request to classify texts."""

    texts: list[str] = Field(min_length=1, max_length=MAX_TEXTS)


class Respond(ModelRequest):
    """A request to answer an instruction."""

    instruction: str = Field(min_length=1, max_length=LONGEST_TEXT)
    input: str = Field("", max_length=LONGEST_TEXT)
    max_new_tokens: int = Field(256, ge=1, le=MAX_NEW_TOKENS)


class Inspect(ModelRequest):
    """A request to look inside a model."""

    prompt: str = Field("", max_length=LONGEST_TEXT)


def make_app(models: Models, host: str = LOOPBACK[0]) -> FastAPI:
    """Return the application: the page and its four requests; for `host`, see `bare_app`."""
    app, routes = bare_app(host), _Routes(models)
    app.get("/")(routes.page)
    app.post("/api/generate")(routes.generate)
    app.post("/api/respond")(routes.respond)
    app.post("/api/classify")(routes.classify)
    app.post("/api/inspect")(routes.inspect)
    return app


class _Routes:
    """The page and its requests. One request at a time uses all cores; waiting requests alternate, one token each."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.computing = threading.Lock()

    def page(self) -> HTMLResponse:
        kinds = {model.name: model.kind for model in self.models.by_name.values()}
        names = {
            "generate": [name for name, kind in kinds.items() if kind != CLASSIFIER],
            "classify": [name for name, kind in kinds.items() if kind == CLASSIFIER],
            "respond": [name for name, kind in kinds.items() if kind == INSTRUCT],
            "inside": list(kinds),
        }
        notes = {name: self.models.note(name) for name in kinds}
        return HTMLResponse(render("ui.html", title="gpt2core", names=names, notes=notes, package="gpt2core.ui"))

    def generate(self, request: Generate) -> StreamingResponse:
        options = request.model_dump(include={field.name for field in dataclasses.fields(Sampling)})
        sampling = Sampling(**options)
        with self.computing:
            model, tokenizer = self.models.language_model(request.model)
        ids = tokenizer.encode(request.prompt) or [tokenizer.eot_id]
        columns = stream(model, [ids], request.max_new_tokens, sampling, request.seed)
        return _stream_text(columns, tokenizer, self.computing, [request.stop] if request.stop else [])

    def respond(self, request: Respond) -> StreamingResponse:
        with self.computing:
            model, tokenizer = self.models.language_model(request.model)
        ids = tokenizer.encode(self.models.prompt(request.model)(request.instruction, request.input))
        room = model.config.n_positions - len(ids)
        if room < 1:
            raise UserError(
                f"the instruction with its input has {len(ids)} tokens, which leaves no room for a response in the "
                f"model's {model.config.n_positions}; shorten it"
            )
        columns = stream(model, [ids], min(room, request.max_new_tokens), slide=False)
        return _stream_text(columns, tokenizer, self.computing, [])

    def classify(self, request: Classify) -> JSONResponse:
        with self.computing:
            model, tokenizer = self.models.classifier(request.model)
            predictions = predict_classes(model, tokenizer, request.texts)
        rows = [list(prediction.probabilities.values()) for prediction in predictions]  # [n, classes]
        return JSONResponse({"labels": model.labels, "probabilities": rows})

    def inspect(self, request: Inspect) -> HTMLResponse:
        with self.computing:
            model, tokenizer = self.models.any(request.model)
            inspection = inspect(model, tokenizer, tokenizer.encode(request.prompt) or [tokenizer.eot_id])
            return HTMLResponse(inspection_page(request.model, request.prompt, inspection))


def _stream_text(
    columns: Iterator[Tensor], tokenizer: Tokenizer, computing: threading.Lock, stops: list[str]
) -> StreamingResponse:
    """Return a text while it is generated, as lines of JSON: {"text": …} and, at its end, {"tokens": …, "seconds": …}.

    Tokens are computed when they are requested, so a client that disconnects stops the model.
    """
    text = TextStream(tokenizer.token_bytes, tokenizer.eot_id, stops)

    def lines() -> Iterator[str]:
        start_s = time.perf_counter()
        while not text.finished:
            with computing:
                column = next(columns, None)
            piece = text.close() if column is None else text.push(int(column[0]))
            if piece:
                yield json.dumps({"text": piece}) + "\n"
        yield json.dumps({"tokens": text.n_tokens, "seconds": time.perf_counter() - start_s}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")
