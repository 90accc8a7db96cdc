"""Short messages, ham or spam, that cannot be classified by their words alone.

Many of them differ from a message of the other class only in the order of events or in who does what. "You pay first,
then we send the lamp" is a fraud; "we send the lamp first, then you pay" is not. "Do not send your code, ask Tom" is a
warning; "do not ask Tom, send your code" is a theft. In the other messages, words such as "coins", "free", and "won"
occur in both classes. The label depends on the meaning of a message, so a model has to read it to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from gpt2core.sources.synthetic.grammar import END, START, Grammar
from gpt2core.sources.synthetic.lexicon import Draw
from gpt2core.sources.synthetic.tales import FORMS, ROLES

N_MESSAGES = 5000
SPAM_SHARE = 1 / 3
ORDER_SHARE = 0.27  # of either class: the messages in which only order or role decides

# Payment before the goods arrive is spam; payment after they arrive is ham.
_YOU_PAY = ("you pay {+price} coins", "you send us {+price} coins", "{friend} gets {+price} coins from you")
_YOU_GET = ("we send you the {thing}", "you get the {thing} from us", "{friend} brings you the {thing}")
_EARLIER_LATER = ("first {0}, then {1}", "after {0}, {1}", "{0}, and only then {1}")
# In each of these, {0} happens before {1}.

# A request to give a secret away is spam; a warning to keep it is ham.
_GIVE_AWAY = ("send us your secret code", "tell us your secret code", "give the key to a stranger",
              "write your code in a letter")  # fmt: skip
_BE_CAREFUL = ("ask {friend} at the {+place}", "talk to {friend} at home", "wait for {friend}", "call {friend}")
_DO_NOT = ("please {0} and do not {1}", "do not {1}, but {0}", "you must not {1}; {0}")

# Whoever was paid too much has to send it back. A stranger who claims that it was you wants your money.
_TOO_MUCH = "{0} paid {1} {{+price}} coins too much for the {{thing}}, so {2} must send {{price}} coins back."


def _order(earlier: Sequence[str], later: Sequence[str]) -> list[str]:
    return [_sentence(frame.format(a, b)) for frame, a, b in product(_EARLIER_LATER, earlier, later)]


def _do_and_do_not(do: Sequence[str], do_not: Sequence[str]) -> list[str]:
    return [_sentence(frame.format(a, b)) for frame, a, b in product(_DO_NOT, do, do_not)]


def _sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:] + "."


def _plot(
    trade: list[str], secret: list[str], debt: list[str], plain: list[str]
) -> dict[str, list[tuple[float, str, str]]]:
    def even(total: float, templates: list[str], to: str = END) -> list[tuple[float, str, str]]:
        return [(total / len(templates), template, to) for template in templates]

    return {
        START: even(0.5 * ORDER_SHARE, _TRADE_OPENINGS, "trade") + even(0.3 * ORDER_SHARE, _SECRET_OPENINGS, "secret")
        + even(0.2 * ORDER_SHARE, _TRADE_OPENINGS, "debt") + even(1 - ORDER_SHARE, plain),
        "trade": even(1, trade), "secret": even(1, secret), "debt": even(1, debt),
    }  # fmt: skip


_TRADE_OPENINGS = [
    "{+friend} has a {+color} {+thing} for you.",
    "This is {+friend} at the {+place}. You want the {+quality} {+thing}.",
    "Hello {+hero}, {+friend} told us about the {+color} {+thing}.",
    "The {+quality} {+thing} is here, says {+friend} the {+job}.",
]
_SECRET_OPENINGS = [
    "{+hero}, a stranger was at the {+spot} and asked about you and {+friend}.",
    "Hello {+hero}, this is about your {+color} box. {+friend} has seen it.",
    "{+friend} the {+job} wrote to you about your {+thing}.",
]

_HAM = Grammar(
    _plot(
        trade=_order(_YOU_GET, _YOU_PAY),
        secret=_do_and_do_not(_BE_CAREFUL, _GIVE_AWAY),
        debt=[_TOO_MUCH.format("You", "us", "we")],
        plain=[
            "{+hero}, we meet at the {+place} this {+time}. Bring the {+thing}.",
            "I left your {+color} {+thing} at the {+place}. {+friend} has the key.",
            "Thank you for the {+thing}, {+hero}. I paid {+friend} {+price} coins for it.",
            "The {+food} is free for all at the {+place} this {+time}. Come with {+friend}!",
            "You won the game, {+hero}! {+friend} was {+mood} and had {+food} with us.",
            "Please get {+number} {+goods} and some {+food} at the market.",
            "My {+animal} is at the {+place} with {+friend}. I come home late.",
            "{+friend} won a {+color} {+thing} at the {+place}. Come and see it!",
            "I was at the {+place} and paid {+price} coins for {+number} {+goods}.",
            "Where are you, {+hero}? {+friend} the {+job} is waiting at the {+place}.",
            "Your {+thing} is {+quality}, {+hero}. {+friend} sends you {+food} for it.",
            "The letter from {+friend} came. It was {+quality} and the {+thing} was in it.",
        ],
    ),
    ROLES,
    FORMS,
)
_SPAM = Grammar(
    _plot(
        trade=_order(_YOU_PAY, _YOU_GET),
        secret=_do_and_do_not(_GIVE_AWAY, _BE_CAREFUL),
        debt=[_TOO_MUCH.format("We", "you", "you")],
        plain=[
            "You won a {+color} {+thing}! Pay {+price} coins today and get it.",
            "Free {+food} for {+price} coins! Pay now and win a {+thing}.",
            "Dear friend, a rich {+job} left you {+number} boxes of coins. Send us {+price} coins to get them.",
            "Win {+number} {+goods} today! Pay only {+price} coins to {+friend} at the {+place}.",
            "{+hero}, your {+thing} is locked. Pay {+price} coins now or lose it!",
            "Last day! A free {+quality} {+thing} for the first {+number} letters with {+price} coins.",
            "I am a {+job} in the {+place} and need {+price} coins now. Do not tell {+friend}.",
            "{+hero}, this is your {+animal} doctor. Send {+price} coins now or the {animal} is lost!",
            "You are the winner! We have {+number} boxes of {+goods} at the {+place}. Pay now!",
            "Turn {+price} coins into boxes of coins in one {+time}! Ask {+friend} the {+job}.",
        ],
    ),
    ROLES,
    FORMS,
)


def generate_messages(seed: int) -> list[tuple[str, str]]:
    """Draw the messages: `N_MESSAGES` of (label "ham" or "spam", text), a third of them spam, no text twice."""
    draw = Draw("messages", seed)
    n_spam = round(N_MESSAGES * SPAM_SHARE)
    texts: dict[str, str] = {}
    for label, grammar, n in (("spam", _SPAM, n_spam), ("ham", _HAM, N_MESSAGES)):
        while len(texts) < n:
            texts.setdefault(grammar.generate(draw), label)
    return draw.shuffled([(label, text) for text, label in texts.items()])
