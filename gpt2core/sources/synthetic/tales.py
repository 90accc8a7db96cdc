"""Short tales from a grammar whose names, places, and facts recur several sentences later.

A model that sees only the last few words cannot know who the hero is, where the lamp was left, or what color it has. A
model that reads the whole tale can. The grammar also gives the probability of every tale. The best loss that any model
can reach on these texts is therefore known exactly: the mean of -log2 P.
"""

from __future__ import annotations

from gpt2core.errors import UserError
from gpt2core.sources.synthetic import lexicon
from gpt2core.sources.synthetic.grammar import END, START, Grammar, split_sentences
from gpt2core.sources.synthetic.lexicon import Draw

__all__ = ["generate_tales", "log2_probability", "parses_sentence", "split_sentences"]

ROLES = {
    "hero": lexicon.NAMES, "friend": lexicon.NAMES,
    "job": lexicon.JOBS, "trade": lexicon.JOBS,
    "origin": lexicon.PLACES, "place": lexicon.PLACES, "spot": lexicon.PLACES,
    "thing": lexicon.THINGS, "prize": lexicon.THINGS,
    "color": lexicon.COLORS, "animal": lexicon.ANIMALS, "quality": lexicon.QUALITIES,
    "mood": lexicon.MOODS, "temper": lexicon.MOODS, "sky": lexicon.SKIES, "time": lexicon.TIMES,
    "way": lexicon.WAYS, "manner": lexicon.WAYS,
    "number": lexicon.NUMBERS, "price": lexicon.NUMBERS, "goods": lexicon.GOODS, "food": lexicon.FOODS,
}  # fmt: skip

FORMS = {
    "opposite": lexicon.OPPOSITE,
    "surname": lexicon.SURNAME,
    "stuff": lexicon.STUFF,
    "part": lexicon.PART,
    "deed": lexicon.DEED,
    "call": lexicon.CALL,
    "like": lexicon.LIKE,
    "use": lexicon.USE,
    "very": lexicon.VERY,
}

# node -> (weight, template, next node). The comment above a node says which facts are known there. Many sentences
# repeat a word of the previous sentence, as folk tales do. A model learns to copy from such near repetitions; distant
# ones show whether it has learned it.
PLOT = {
    # Nothing is known yet. Every opening binds hero, job and origin (the hero's home).
    START: [
        (3, "Once there was a {+job} named {+hero} {hero:surname}. "
            "{hero} lived at the {+origin}, by the {origin} {origin:part}.", "find"),
        (2, "One {+sky} {+time}, a {+job} came to the {+origin} {origin:part}. "
            "The {job} was {+hero} {hero:surname}.", "find"),
        (2, "Long ago, {+hero} {hero:surname} lived at the {+origin}. {hero} was a {+mood} {+job}.", "find"),
        (2, "There was a {+mood} {+job} at the {+origin}. The {job} was {+hero} {hero:surname}.", "find"),
    ],
    # Every step binds thing and color.
    "find": [
        (3, "At the {origin}, {hero} found a {+thing} of {thing:stuff}. "
            "The {thing} was {+color:like} {color}.", "alone"),
        (2, "{hero} had a {+thing} of {thing:stuff}, {+color:like} {color}.", "alone"),
        (2, "One {+sky} {+time}, {hero} the {job} found a {+color:like} {color} {+thing} of {thing:stuff}.", "alone"),
        (2, "{hero} the {job} {job:deed} and had a {+color:like} {color} {+thing} of {thing:stuff}.", "alone"),
    ],
    # The hero has the thing. Every step binds quality.
    "alone": [
        (2, "The {thing} was {+quality:very} {quality}.", "weather"),
        (2, "The {thing} was {+quality:very} {quality}, and {hero} was {+mood}.", "weather"),
        (1, "{hero} held it {+way}, for the {thing} was {+quality:very} {quality}.", "weather"),
        (2, "A {+animal} came. The {animal} {animal:call} {+way}, "
            "for the {thing} was {+quality:very} {quality}.", "weather"),
    ],
    "weather": [
        (3, "It was a {+sky} {+time}.", "meeting"),
        (1, "The {+time} was {+sky}, and {hero} was {+mood}.", "meeting"),
        (1, '"What a {+sky} {+time}!" said {hero}.', "meeting"),
    ],
    # Every step binds friend, trade and place (where both are from now on).
    "meeting": [
        (3, "{hero} took the {color} {thing} to the {+place}. "
            "By the {place} {place:part} was {+friend} {friend:surname}. {friend} was a {+trade}.", "talk"),
        (3, "{hero} met a {+temper} {+trade} by the {+place} {place:part}. "
            "The {trade} was {+friend} {friend:surname}.", "talk"),
        (2, "At the {+place} was a {+trade} named {+friend} {friend:surname}. "
            "{friend} saw {hero} and was {+temper}.", "talk"),
        (2, "Then {+friend} {friend:surname} the {+trade} came. "
            "They took the {color} {thing} to the {+place}.", "talk"),
    ],
    # Both talk about the thing and each other.
    "talk": [
        (2, '"Where is your home?" asked {friend} {+way}. "My home is at the {origin}," said {hero}.', "middle"),
        (2, '"What color is the {thing}?" asked {friend} {+way}. "The {thing} is {color}," said {hero}.', "middle"),
        (1, '"Is the {thing} {quality}?" asked {friend} {+way}. '
            '"Yes, the {thing} is {quality}," said {hero}.', "middle"),
        (1, '"Is the {thing} {quality:opposite}?" asked {friend} {+way}. '
            '"No, the {thing} is {quality}," said {hero}.', "middle"),
        (1, '"Are you a {trade}?" asked {hero} {+way}. "Yes, I am a {trade}," said {friend} the {trade}.', "middle"),
        (1, '"Are you a {job}?" asked {hero} {+way}. "No, I am a {trade}," said {friend} the {trade}.', "middle"),
        (2, "{friend} the {trade} {trade:deed} {+way}. {hero} the {job} {job:deed} {+manner}.", "middle"),
    ],
    # What comes between: a favor, a letter, a task on a wall, a meal, or nothing.
    "middle": [
        (2, "{friend} needed {+number} {+goods} for the {goods:use}.", "favor"),
        (1, "{friend} had lost {+number} {+goods} for the {goods:use}.", "favor"),
        (1, 'Then came a letter: "First you pay {+price} coins, then we send a {+prize}."', "trick"),
        (1, 'Then came a letter: "After you pay {+price} coins, we send a {+prize}."', "trick"),
        (1, 'Then came a letter: "First we send a {+prize}, then you pay {+price} coins."', "honest"),
        (1, 'Then came a letter: "After we send a {+prize}, you pay {+price} coins."', "honest"),
        (1, 'On a wall was an instruction: "Write a response that completes the request below."', "task"),
        (1, "Below a window was an instruction that describes a task.", "task"),
        (2, "They had {+food} at the {place}, and {hero} was {+mood}.", "turn"),
        (2, "They sat by the {place} {place:part}, and {hero} was {+mood}.", "turn"),
    ],
    "favor": [
        (1, '"How many {goods} do you need?" asked {hero} {+way}. "I need {number} {goods}," said {friend}.', "turn"),
        (1, "{hero} had {number} {goods}. {friend} took the {number} {goods} for the {goods:use}.", "turn"),
        (1, '"Here are {number} {goods} for the {goods:use}," said {hero}.', "turn"),
    ],
    "trick": [
        (1, '"It is a trick," said {friend}, and {hero} did not pay {price} coins.', "turn"),
        (1, "{hero} paid {price} coins, but the {prize} never came.", "turn"),
    ],
    "honest": [
        (1, '"It is honest," said {friend}, and the {prize} came.', "turn"),
        (1, "The {prize} came, and then {hero} paid {price} coins.", "turn"),
    ],
    "task": [
        (1, '"What color is the {thing}?" {hero} wrote: "The {thing} is {color}."', "turn"),
        (1, '"Who is the {trade}?" {hero} wrote: "The {trade} is {friend}."', "turn"),
        (1, '"Where is your home?" {hero} wrote: "My home is at the {origin}."', "turn"),
    ],
    # The thing changes hands or its place.
    "turn": [
        (2, "One {+time} {hero} gave the {color} {thing} to {friend}.", "given"),
        (2, "That {+time} {friend} bought the {color} {thing} for {+price} coins.", "sold"),
        (3, "That {+time} {hero} left the {color} {thing} by the {place} "
            "{place:part} and went to the {+spot}.", "left"),
        (2, "{friend} took the {color} {thing} to the {+spot} and sat by the {spot} {spot:part}.", "taken"),
        (2, "{hero} lost the {color} {thing} at the {+spot}, by the {spot} {spot:part}.", "lost"),
    ],
    "given": [
        (2, '"Who has the {color} {thing}?" asked the {+animal}. "The {thing} is with {friend}," said {hero}. '
            'The {animal} {animal:call}.', "close"),
        (1, "{friend} thanked {hero} {+way} for the {thing} of {thing:stuff}.", "close"),
    ],
    "sold": [
        (2, '"How many coins did {friend} pay?" asked the {+animal}. '
            '"The price was {price} coins," said {hero}.', "close"),
        (1, "With {price} coins {hero} bought {+food}.", "close"),
    ],
    "left": [
        (3, '"Where is the {color} {thing}?" asked {friend} {+way}. '
            '"The {thing} is at the {place}," said {hero}.', "close"),
        (1, "Then {hero} went back to the {place}, and the {thing} was at the {place}.", "close"),
    ],
    "taken": [
        (3, '"Where is the {color} {thing}?" asked {hero} {+way}. '
            '"The {thing} is at the {spot}," said {friend}.', "close"),
        (1, "{hero} sat by the {place} {place:part}. {friend} was at the {spot} and sang {+way}.", "close"),
    ],
    "lost": [
        (2, '"Where is the {color} {thing}?" asked {friend} {+way}. '
            '"The {thing} is at the {spot}," said {hero}.', "close"),
        (1, "{friend} found the {thing} at the {spot}.", "close"),
    ],
    "close": [
        (2, "{hero} the {job} never forgot the {color} {thing} of {thing:stuff}.", END),
        (2, "That {+time} {hero} slept at the {origin}. {friend} slept at the {+spot}.", END),
        (1, "And so {friend} the {trade} had a new friend.", END),
        (1, "{hero} was {+mood}. {friend} was {+temper}, and the {color} {thing} was {quality}.", END),
    ],
}  # fmt: skip

_GRAMMAR = Grammar(PLOT, ROLES, FORMS)


def generate_tales(seed: int, n_documents: int) -> list[str]:
    """Draw `n_documents` tales, one string each; the same seed gives the same tales on every machine.

    A tale has about 650 bytes, which a byte-level BPE of 1,024 tokens writes in about 160: 3,000 of them make 1.9 MB.
    Raises UserError if `n_documents` is less than 1.
    """
    if n_documents < 1:
        raise UserError(f"n_documents is {n_documents}, but at least 1 tale has to be drawn; ask for 1 or more.")
    draw = Draw("tales", seed)
    return [_GRAMMAR.generate(draw) for _ in range(n_documents)]


def log2_probability(tale: str) -> float:
    """Return the exact log2 of the probability that the grammar writes `tale`, its end included.

    Raises ValueError, saying where it stops fitting, for a text that the grammar cannot write.
    """
    return _GRAMMAR.log2_probability(tale)


def parses_sentence(sentence: str) -> bool:
    """Say whether `sentence`, alone, is one that the grammar can write in some tale."""
    return _GRAMMAR.parses_sentence(sentence)
