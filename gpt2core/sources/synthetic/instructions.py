"""Instructions with inputs and responses, simple enough for a small model to learn.

Most kinds ask for facts in the input (who, where, what color, how many), so a memorized answer is wrong. A few ask for
a small mapping between words (opposites, past tense, the order of numbers). Every input, and every pair of instruction
and input, occurs once. A test split therefore contains nothing that was seen in training.
"""

from __future__ import annotations

from collections.abc import Callable

from gpt2core.sources.synthetic import lexicon as words
from gpt2core.sources.synthetic.lexicon import Draw

N_INSTRUCTIONS = 1600

Entry = tuple[str, str, str]  # instruction, input, output

PAST = {
    "finds": "found", "takes": "took", "gives": "gave", "buys": "bought", "sees": "saw", "carries": "carried",
    "holds": "held", "likes": "liked", "has": "had", "meets": "met", "needs": "needed", "leaves": "left",
}  # fmt: skip
COUNTED = ("one",) + words.NUMBERS


class _Scene:
    """The facts of one short story, the story itself as the input, and questions to ask of it."""

    def __init__(self, draw: Draw) -> None:
        self.hero, self.friend = draw.sample(words.NAMES, 2)
        self.job, self.trade = draw.sample(words.JOBS, 2)
        self.origin, self.place, self.spot = draw.sample(words.PLACES, 3)
        self.thing, self.color = draw.pick(words.THINGS), draw.pick(words.COLORS)
        self.price, self.quality = draw.pick(words.NUMBERS), draw.pick(words.QUALITIES)

    def tell(self, *sentences: str) -> str:
        return " ".join(sentences).format(**vars(self))


_FOUND = ("Long ago, {hero} the {job} bought a {color} {thing} at the {origin}.",
          "One day, {hero} the {job} found a {color} {thing} at the {origin}.")  # fmt: skip
_MET = ("{hero} carried the {thing} to the {place} and met {friend} the {trade}.",
        "At the {place}, {hero} met {friend} the {trade}.")  # fmt: skip
_LEFT = "{hero} left the {thing} at the {place} and walked to the {spot}."
_SOLD = "{friend} bought the {thing} for {price} coins."
_TOOK = "{friend} borrowed the {thing} and took it to the {spot}."


def _about_story(question: str, answer: str, *ends: str) -> Callable[[Draw], Entry]:
    def entry(draw: Draw) -> Entry:
        scene = _Scene(draw)
        story = scene.tell(draw.pick(_FOUND), draw.pick(_MET), draw.pick(ends))
        return scene.tell(question), story, scene.tell(answer)

    return entry


def _yes_or_no(draw: Draw) -> Entry:
    scene = _Scene(draw)
    end, truth, lie = draw.pick(((_LEFT, scene.place, scene.spot), (_TOOK, scene.spot, scene.place)))
    place = draw.pick((truth, lie))
    answer = f"Yes, it is at the {truth}." if place == truth else f"No, it is at the {truth}."
    story = scene.tell(draw.pick(_FOUND), draw.pick(_MET), end)
    return f"Is the {scene.thing} at the {place}?", story, answer


def _letter(draw: Draw) -> Entry:
    scene = _Scene(draw)
    pay, send = f"you pay {scene.price} coins", f"we send the {scene.color} {scene.thing}"
    trick = draw.pick((True, False))
    one, two = (pay, send) if trick else (send, pay)
    letter = draw.pick((f"First {one}, then {two}.", f"After {one}, {two}."))
    return "Is this letter a trick?", letter, "Yes, it is a trick." if trick else "No, it is honest."


def _opposite_in_sentence(draw: Draw) -> Entry:
    scene = _Scene(draw)
    return ("Write the sentence with the opposite word.", scene.tell("The {color} {thing} was {quality}."),
            scene.tell("It was ") + words.OPPOSITE[scene.quality] + ".")  # fmt: skip


def _opposite(draw: Draw) -> Entry:
    quality = draw.pick(words.QUALITIES)
    questions = ("What is the opposite of {}?", "Write the opposite of {}.", "Which word is the opposite of {}?")
    question = draw.pick(questions)
    return question.format(quality), "", f"Not {quality}, but {words.OPPOSITE[quality]}."


def _past_tense(draw: Draw) -> Entry:
    scene = _Scene(draw)
    verb = draw.pick(tuple(PAST))
    before, after = scene.tell("One day {hero}"), scene.tell("the {thing}.")
    return "Write the sentence in the past tense.", f"{before} {verb} {after}", f"{before} {PAST[verb]} {after}"


def _other_name(draw: Draw) -> Entry:
    scene = _Scene(draw)
    sentence = "One day {0} had a {color} {thing}."
    return (scene.tell("Write the sentence with the name {friend}."), sentence.format(scene.hero, **vars(scene)),
            sentence.format(scene.friend, **vars(scene)))  # fmt: skip


def _in_order(draw: Draw) -> Entry:
    numbers = draw.sample(words.NUMBERS, 3)
    in_order = sorted(numbers, key=COUNTED.index)
    return "Put the numbers in order.", f"The numbers are {', '.join(numbers)}.", f"The order is {', '.join(in_order)}."


def _turned_round(draw: Draw) -> Entry:
    names = draw.sample(words.THINGS, 3)
    listed, turned = ", ".join(names), ", ".join(reversed(names))
    return "Write the list from last to first.", f"The list is {listed}.", f"The list is {turned}."


def _odd_one_out(draw: Draw) -> Entry:
    kind, other = draw.sample((words.THINGS, words.PLACES, words.ANIMALS, words.COLORS, words.JOBS), 2)
    odd = draw.pick(other)
    words_given = draw.shuffled([*draw.sample(kind, 3), odd])
    return "Which word does not belong?", f"The words are {', '.join(words_given)}.", f"The {odd}."


def _count(draw: Draw) -> Entry:
    names = draw.sample(words.THINGS, 2 + draw.below(5))
    answer = f"There are {COUNTED[len(names) - 1]}."
    return "How many things are in the list?", f"The list is {', '.join(names)}.", answer


def _complete(draw: Draw) -> Entry:
    scene = _Scene(draw)
    return ("Write the end of the last sentence.",
            scene.tell(draw.pick(_FOUND), "{hero} lost the {thing} at the {place}. Then {hero} looked for the"),
            scene.tell("The {thing} at the {place}."))  # fmt: skip


def _from_words(draw: Draw) -> Entry:
    scene = _Scene(draw)
    return ("Write a sentence with these words.", scene.tell("The words are {hero}, {thing}, {place}."),
            scene.tell("The {thing} of {hero} is at the {place}."))  # fmt: skip


def _kind_of_word(draw: Draw) -> Entry:
    kinds = {"thing": words.THINGS, "place": words.PLACES, "color": words.COLORS}
    right, wrong = draw.sample(tuple(kinds), 2)
    word = draw.pick(kinds[right])
    first, second = draw.shuffled((right, wrong))
    return f"Is {word} a {first} or a {second}?", "", f"A {right}."


def _greater(draw: Draw) -> Entry:
    a, b = draw.sample(words.NUMBERS, 2)
    return f"Which is more, {a} or {b}?", "", f"It is {max(a, b, key=COUNTED.index)}."


# kind -> (weight, how an entry is drawn)
KINDS: dict[str, tuple[float, Callable[[Draw], Entry]]] = {
    "where left": (3, _about_story("Where is the {thing}?", "The {thing} is at the {place}.", _LEFT)),
    "where taken": (3, _about_story("Where is the {thing}?", "The {thing} is at the {spot}.", _TOOK)),
    "who": (3, _about_story("Who is the {trade}?", "The {trade} is {friend}.", _LEFT, _TOOK, _SOLD)),
    "color": (3, _about_story("What color is the {thing}?", "The {thing} is {color}.", _LEFT, _TOOK, _SOLD)),
    "origin": (2, _about_story("Where did {hero} get the {thing}?", "At the {origin}.", _LEFT, _TOOK, _SOLD)),
    "price": (2, _about_story("How many coins did {friend} pay?", "The price was {price} coins.", _SOLD)),
    "yes or no": (2, _yes_or_no),
    "letter": (1, _letter),
    "opposite in a sentence": (2, _opposite_in_sentence),
    "opposite": (1, _opposite),
    "past tense": (1, _past_tense),
    "other name": (1, _other_name),
    "order": (2, _in_order),
    "last to first": (1, _turned_round),
    "odd one out": (2, _odd_one_out),
    "count": (1, _count),
    "complete": (2, _complete),
    "from words": (2, _from_words),
    "kind of word": (1, _kind_of_word),
    "greater": (1, _greater),
}


def generate_instructions(seed: int) -> list[dict[str, str]]:
    """Draw `N_INSTRUCTIONS` entries with the keys instruction, input (it may be "") and output, in random order.

    No (instruction, input) and no input but "" occurs twice.
    """
    draw = Draw("instructions", seed)
    total = sum(weight for weight, _ in KINDS.values())
    entries: list[dict[str, str]] = []
    asked: set[tuple[str, str]] = set()
    for weight, entry in KINDS.values():
        target = len(entries) + round(N_INSTRUCTIONS * weight / total)
        tries = 0
        while len(entries) < target and tries < 20 * N_INSTRUCTIONS:
            tries += 1
            instruction, text, output = entry(draw)
            key = ("", text) if text else (instruction, "")
            if key not in asked:
                asked.add(key)
                entries.append({"instruction": instruction, "input": text, "output": output})
    return draw.shuffled(entries)
