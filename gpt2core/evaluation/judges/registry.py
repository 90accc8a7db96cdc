"""The judges that params name. A new judge is a module in this folder and a case here."""

from __future__ import annotations

from pathlib import Path

from gpt2core.config.judge import Judge as JudgeParams
from gpt2core.evaluation.judges.judge import Judge


def make_judges(judge: JudgeParams, seed: int, replies_dir: Path) -> list[Judge]:
    """Return the judges that the params name, in their order.

    The seed is sent with each request to a judge that samples. `ReplyCache` keeps the replies in `replies_dir`.
    """
    judges: list[Judge] = []
    for kind in judge.kinds():
        if kind == "chrf":
            from gpt2core.evaluation.judges.chrf import ChrfJudge

            judges.append(ChrfJudge())
            continue

        from gpt2core.evaluation.judges.language_model import Chat, LanguageModelJudge

        chats: list[Chat]
        if kind == "openai":
            from gpt2core.evaluation.judges.openai import OpenAIChat  # the client takes half a second to import

            chats = [OpenAIChat(judge, model, seed) for model in judge.models()]
        else:
            from gpt2core.evaluation.judges.local import local_chat

            chats = [local_chat(Path(judge.model_dir or ""))]
        judges += [LanguageModelJudge(chat, replies_dir, judge.min_coverage) for chat in chats]
    return judges
