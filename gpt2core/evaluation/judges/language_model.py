"""A language model as judge, whoever answers for it (Zheng et al. 2023, LLM-as-a-Judge)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from gpt2core.errors import UserError
from gpt2core.evaluation.judges import Item, Pair, Preference, questions
from gpt2core.evaluation.judges.replies import Messages, Replies
from gpt2core.log import logger


class NoReply(Exception):
    """One request came to nothing; the text says why. Others may do better."""


class Chat(Protocol):
    """Who answers.

    kind, model: its name is `kind:model`. settings: what else decides a reply, JSON values. where: the params that
    name it, for messages. concurrency: how many may ask at once.
    """

    kind: str
    model: str
    settings: dict[str, Any]
    where: str
    remedy: str
    concurrency: int

    def reply(self, messages: Messages) -> str:
        """The reply to a conversation. Raises NoReply; UserError where no request would do better."""
        ...


class LanguageModelJudge:
    """Asks for an integer, or for A, B or tie; a reply that is neither is asked for once more.

    Each reply is kept in `replies_dir` and not asked for again. An item fails (None) when it gets no reply, or when
    neither reply can be read. When so many have failed that min_coverage is out of reach, the rest are not asked for:
    a UserError says how many failed of what.
    """

    def __init__(self, chat: Chat, replies_dir: Path, min_coverage: float) -> None:
        self.name = f"{chat.kind}:{chat.model}"
        self._chat, self._min_coverage = chat, min_coverage
        identity = {"judge": chat.kind, "model": chat.model, "prompt_version": questions.PROMPT_VERSION}
        self._replies = Replies(replies_dir, {**identity, **chat.settings})

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """Scores in the order of `items`. Raises UserError as the class says."""
        asked = [questions.ask_score(item) for item in items]
        return self._answers(asked, questions.parse_score, questions.SCORE_REPAIR, "a score from 0 to 100")

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | None]:
        """Choices in the order of `pairs`. Raises UserError as the class says."""
        asked = [questions.ask_preference(pair) for pair in pairs]
        return self._answers(asked, questions.parse_preference, questions.PREFER_REPAIR, "A, B or tie")

    def _answers(self, asked: Sequence[str], parse: Callable[[str], Any], repair: str, wanted: str) -> list[Any]:
        """What `parse` made of each reply, or None. Equal questions are asked once."""
        pool = ThreadPoolExecutor(self._chat.concurrency, thread_name_prefix="judge")
        counts = Counter(asked)
        answers: dict[str, Any] = {}
        answered = 0
        failures: Counter[str] = Counter()
        try:
            futures = {question: pool.submit(self._answer, question, parse, repair, wanted) for question in counts}
            # `disable=None`: a progress bar only where somebody watches.
            bar = tqdm(futures.items(), desc=self.name, unit="answer", disable=None, leave=False)
            for question, future in bar:
                answers[question], failure = future.result()
                if failure:
                    failures[failure] += counts[question]
                    self._check_coverage(failures, answered, len(asked))
                else:
                    answered += counts[question]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error, do not wait for requests under way
        if failures:
            logger.warning(f"{self.name}: {failures.total()} of {len(asked)} could not be judged: {_listed(failures)}")
        return [answers[question] for question in asked]

    def _answer(self, question: str, parse: Callable[[str], Any], repair: str, wanted: str) -> tuple[Any, str]:
        """The answer to a question, or none and the reason. Raises UserError if no question could be answered."""
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
        return None, f"the reply is not {wanted}, asked twice"

    def _check_coverage(self, failures: Counter[str], answered: int, total: int) -> None:
        """UserError as soon as min_coverage (or a single answer) is out of reach: the rest need not be paid for."""
        failed = failures.total()
        if total - failed >= max(1, math.ceil(self._min_coverage * total - 1e-9)):
            return
        raise UserError(
            f"{self._chat.where}: of {total} responses, {answered} were judged and {failed} could not be before "
            f"judge.min_coverage = {self._min_coverage:g} was out of reach: {_listed(failures)}; {self._chat.remedy}, "
            f"or judge.min_coverage; or set judge.kind to chrf. Replies so far are kept in {self._replies.path}"
        )


def _listed(failures: Counter[str]) -> str:
    return "; ".join(f"{count} × {reason}" for reason, count in failures.most_common(3))
