"""The page's server: JSON in, JSON or lines of JSON out. It talks to this machine alone and fetches nothing."""

from __future__ import annotations

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
from gpt2core.inspect import inspect
from gpt2core.report.inside import inspection_page
from gpt2core.report.page import render
from gpt2core.tokenizer import Tokenizer
from gpt2core.ui.models import CLASSIFIER, INSTRUCT, Models
from gpt2core.ui.serving import LOOPBACK, bare_app

LONGEST_TEXT = 1_000_000  # characters
MOST_NEW_TOKENS = 100_000
MOST_TEXTS = 1_000


class Asked(BaseModel):
    """What every question has; another key is a mistake."""

    model_config = ConfigDict(extra="forbid")
    model: str


class Generate(Asked):
    prompt: str = Field("", max_length=LONGEST_TEXT)
    max_new_tokens: int = Field(100, ge=1, le=MOST_NEW_TOKENS)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = Field(0, ge=0, lt=2**63)
    stop: str = Field("", max_length=LONGEST_TEXT)


class Classify(Asked):
    texts: list[str] = Field(min_length=1, max_length=MOST_TEXTS)


class Respond(Asked):
    instruction: str = Field(min_length=1, max_length=LONGEST_TEXT)
    input: str = Field("", max_length=LONGEST_TEXT)
    max_new_tokens: int = Field(256, ge=1, le=MOST_NEW_TOKENS)


class Inspect(Asked):
    prompt: str = Field("", max_length=LONGEST_TEXT)


def make_app(models: Models, host: str = LOOPBACK[0]) -> FastAPI:
    """The page and its four questions.

    Args:
        models: those that can be tried.
        host: the address that is served, see `bare_app`.
    """
    app = bare_app(host)
    computing = threading.Lock()  # one product at a time has all cores; those who wait take turns, a token each
    by_kind = [(found.name, found.kind) for found in models.found.values()]

    @app.get("/")
    def page() -> HTMLResponse:
        names = {
            "generate": [name for name, kind in by_kind if kind != CLASSIFIER],
            "classify": [name for name, kind in by_kind if kind == CLASSIFIER],
            "respond": [name for name, kind in by_kind if kind == INSTRUCT],
            "inside": [name for name, _ in by_kind],
        }
        return HTMLResponse(render("ui.html", title="gpt2core", names=names, package="gpt2core.ui"))

    @app.post("/api/generate")
    def generate(asked: Generate) -> StreamingResponse:
        sampling = Sampling(asked.temperature, asked.top_k, asked.top_p, asked.min_p, asked.repetition_penalty)
        with computing:
            model, tokenizer = models.language_model(asked.model)
        ids = tokenizer.encode(asked.prompt) or [tokenizer.eot_id]
        columns = stream(model, [ids], asked.max_new_tokens, sampling, asked.seed)
        return _told(columns, tokenizer, computing, [asked.stop] if asked.stop else [])

    @app.post("/api/respond")
    def respond(asked: Respond) -> StreamingResponse:
        with computing:
            model, tokenizer = models.language_model(asked.model)
        ids = tokenizer.encode(models.prompt(asked.model)(asked.instruction, asked.input))
        room = model.config.n_positions - len(ids)
        if room < 1:
            raise UserError(
                f"the instruction with its input has {len(ids)} tokens, which leaves no room for a response in the "
                f"model's {model.config.n_positions}; shorten it"
            )
        return _told(stream(model, [ids], min(room, asked.max_new_tokens), slide=False), tokenizer, computing, [])

    @app.post("/api/classify")
    def classify(asked: Classify) -> JSONResponse:
        with computing:
            model, tokenizer = models.classifier(asked.model)
            predictions = predict_classes(model, tokenizer, asked.texts)
        rows = [list(prediction.probabilities.values()) for prediction in predictions]  # [n, classes]
        return JSONResponse({"labels": model.labels, "probabilities": rows})

    @app.post("/api/inspect")
    def look_inside(asked: Inspect) -> HTMLResponse:
        with computing:
            model, tokenizer = models.any(asked.model)
            found = inspect(model, tokenizer, tokenizer.encode(asked.prompt) or [tokenizer.eot_id])
            return HTMLResponse(inspection_page(asked.model, asked.prompt, found))

    return app


def _told(
    columns: Iterator[Tensor], tokenizer: Tokenizer, computing: threading.Lock, stops: list[str]
) -> StreamingResponse:
    """A text as it comes, a line of JSON a piece: {"text": …}, and at its end {"tokens": …, "seconds": …}.

    Who goes away stops the model: nothing is computed before it is asked for.
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
