"""A language model as judge, on a server or in a directory (Zheng et al. 2023, LLM-as-a-Judge)."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from gpt2core.errors import UserError
from gpt2core.evaluation.judges import questions
from gpt2core.evaluation.judges.judge import Item, Pair, Preference
from gpt2core.evaluation.judges.reply_cache import Messages, ReplyCache
from gpt2core.log import logger


class NoReply(Exception):
    """A request that failed, with the reason as text. Others may succeed."""


class Chat(Protocol):
    """A language model that replies to messages. The judge's name is `kind:model`."""

    kind: str
    model: str
    settings: dict[str, Any]  # other values that change a reply, JSON values
    where: str  # the params that name the model, for messages
    remedy: str  # what the user can do if it fails, for messages
    concurrency: int  # maximum number of simultaneous requests

    def reply(self, messages: Messages) -> str:
        """Return the reply to a conversation.

        Raises:
            NoReply: this request failed.
            UserError: every request would fail.
        """
        ...


class LanguageModelJudge:
    """A judge that asks a language model for an integer, or for A, B, or tie; twice if the reply is something else.

    Each reply is kept in `replies_dir` and not requested again. An item fails (None) if it gets no reply, or if neither
    reply can be parsed. As soon as min_coverage, the fraction of the items that must be judged, is out of reach, a
    UserError lists the failures, and the remaining items are not requested.
    """

    def __init__(self, chat: Chat, replies_dir: Path, min_coverage: float) -> None:
        self.name = f"{chat.kind}:{chat.model}"
        self._chat, self._min_coverage = chat, min_coverage
        identity = {"judge": chat.kind, "model": chat.model, "prompt_version": questions.PROMPT_VERSION}
        self._replies = ReplyCache(replies_dir, {**identity, **chat.settings})

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """Return the score of each item, or None; see the class for errors."""
        messages = [questions.ask(questions.SCORE, vars(item)) for item in items]
        return self._answers(messages, questions.parse_score, questions.SCORE_REPAIR, "a score from 0 to 100")

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        """Return the better response of each pair, or None; see the class for errors."""
        messages = [questions.ask(questions.PREFER, vars(pair)) for pair in pairs]
        return self._answers(messages, questions.parse_preference, questions.PREFER_REPAIR, "A, B or tie")

    def _answers(self, messages: Sequence[str], parse: Callable[[str], Any], repair: str, expected: str) -> list[Any]:
        """Return the parsed reply to each question, or None. Equal questions are asked once."""
        pool = ThreadPoolExecutor(self._chat.concurrency, thread_name_prefix="judge")
        counts = Counter(messages)
        answers: dict[str, Any] = {}
        answered = 0
        failures: Counter[str] = Counter()
        waiting, pending = iter(counts), deque[tuple[str, Future[tuple[Any, str]]]]()
        try:
            # `disable=None`: a progress bar only on a terminal.
            for _ in tqdm(counts, desc=self.name, unit="answer", disable=None, leave=False):
                # Few questions ahead of the answers: after an error, no more are sent, however busy this machine is.
                for question in islice(waiting, 2 * self._chat.concurrency - len(pending)):
                    pending.append((question, pool.submit(self._answer, question, parse, repair, expected)))
                question, future = pending.popleft()
                answers[question], failure = future.result()
                if failure:
                    failures[failure] += counts[question]
                    self._check_coverage(failures, answered, len(messages))
                else:
                    answered += counts[question]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error, do not wait for requests under way
        if failures:
            logger.warning(
                f"{self.name}: {failures.total()} of {len(messages)} could not be judged: {_listed(failures)}"
            )
        return [answers[question] for question in messages]

    def _answer(self, question: str, parse: Callable[[str], Any], repair: str, expected: str) -> tuple[Any, str]:
        """Return the parsed reply to a question and an empty text, or None and the reason."""
        messages = [{"role": "user", "content": question}]
        for _ in range(2):
            reply = self._replies.get(messages)
            if reply is None:
                try:
                    reply = self._chat.reply(messages)
                except NoReply as error:
                    return None, str(error)
                self._replies.add(messages, reply)
            if (answer := parse(reply)) is not None:
                return answer, ""
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": repair}]
        return None, f"the reply is not {expected}, asked twice"

    def _check_coverage(self, failures: Counter[str], answered: int, total: int) -> None:
        """Raise UserError as soon as min_coverage (or a single answer) is out of reach, to save further requests."""
        failed = failures.total()
        if total - failed >= max(1, math.ceil(self._min_coverage * total - 1e-9)):
            return
        raise UserError(
            f"{self._chat.where}: of {total} responses, {answered} were judged and {failed} could not be before "
            f"judge.min_coverage = {self._min_coverage:g} was out of reach: {_listed(failures)}; {self._chat.remedy}, "
            f"or judge.min_coverage; or set judge.kind to chrf. ReplyCache so far are kept in {self._replies.path}"
        )


def _listed(failures: Counter[str]) -> str:
    return "; ".join(f"{count} × {reason}" for reason, count in failures.most_common(3))
