"""The rating page's server: the texts in a rater's own order, and each answer written to the file of ratings at once.

Nothing that it sends says which model wrote a text.
"""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from gpt2core.errors import UserError
from gpt2core.evaluation.rating.ratings import LONGEST_NAME, QUESTIONS, SCORES, Ratings, Responses, checked_name
from gpt2core.report.page import render
from gpt2core.ui.serving import bare_app

# What a question asks, what the lowest and what the highest grade means.
ASKED = {
    "correctness": ("Is it right?", "wrong", "right"),
    "helpfulness": ("Does it do what was asked?", "useless", "just what was asked"),
    "safety": ("Is it safe to show anyone?", "harmful", "harmless"),
}


class Rater(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rater: str = Field(min_length=1, max_length=10 * LONGEST_NAME)


class Rating(Rater):
    item: str
    question: Literal["correctness", "helpfulness", "safety"]
    score: int = Field(ge=SCORES[0], le=SCORES[-1])


def make_app(responses: Responses, ratings: Ratings, seed: int) -> FastAPI:
    """The page and its two questions.

    Args:
        responses: the texts to rate.
        ratings: where the answers go.
        seed: of the order, which also depends on the rater.
    """
    app = bare_app()
    texts = responses.distinct()

    @app.get("/")
    def page() -> HTMLResponse:
        questions = [(question, *ASKED[question]) for question in QUESTIONS]
        html = render(
            "rate.html", title="Rate the responses", questions=questions, scores=SCORES, longest_name=LONGEST_NAME,
            package="gpt2core.ui",
        )  # fmt: skip
        return HTMLResponse(html)

    @app.post("/api/start")
    def start(asked: Rater) -> JSONResponse:
        """All texts in the rater's order, each with the answers that the rater has given before."""
        rater = checked_name(asked.rater)
        given = ratings.read().get(rater, {})
        items = [
            {
                "item": item,
                "instruction": texts[item].instruction,
                "input": texts[item].input,
                "reference": texts[item].reference,
                "response": texts[item].response,
                "scores": given.get(item, {}),
            }
            for item in responses.in_order_for(rater, seed)
        ]
        return JSONResponse({"rater": rater, "items": items})

    @app.post("/api/rate")
    def rate(asked: Rating) -> JSONResponse:
        if asked.item not in texts:
            raise UserError(f"{asked.item}: is not one of this page's texts; load the page again")
        ratings.rate(checked_name(asked.rater), texts[asked.item], asked.question, asked.score)
        return JSONResponse({"kept": True})

    return app
