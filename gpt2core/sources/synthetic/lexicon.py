"""The words that tales, messages and instructions share, and one small source of random draws.

The three kinds of text share their words so that what a model learns from the tales serves both fine-tunings.
Most words are short: a byte-level BPE of 1,024 tokens then holds them whole, and "a name that returns" is one token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

WOMEN = (
    "Mira", "Anna", "Ida", "Nora", "Rosa", "Vera", "Elsa", "Greta",
    "Clara", "Dora",
)  # fmt: skip
MEN = (
    "Bran", "Tom", "Finn", "Karl", "Emil", "Jon", "Nils", "Max",
    "Theo", "Paul",
)  # fmt: skip
NAMES = WOMEN + MEN
PLACES = (
    "mill", "barn", "inn", "bridge", "tower", "market", "harbor", "school",
    "lake", "castle", "forge", "church", "farm", "river",
)  # fmt: skip
THINGS = (
    "lamp", "drum", "kite", "key", "map", "ring", "coat", "bell",
    "cup", "flute", "hat", "book", "whistle", "mask", "doll", "crown",
)  # fmt: skip
ANIMALS = (
    "dog", "cat", "horse", "hen", "fox", "crow", "frog", "duck",
)  # fmt: skip
JOBS = (
    "baker", "sailor", "teacher", "farmer", "painter", "singer", "weaver", "hunter",
    "carver", "dancer",
)  # fmt: skip
COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown", "gray")
NUMBERS = ("two", "three", "four", "five", "six", "seven")  # in order of size
GOODS = (
    "nails", "eggs", "apples", "stones", "plums", "seeds",
)  # fmt: skip
FOODS = ("bread", "soup", "cheese", "honey", "cake", "rice", "milk", "tea")
TIMES = ("morning", "evening", "winter", "summer", "spring", "autumn", "night", "day")
SENSES = (  # pairs of opposites, as said of a thing
    ("old", "new"), ("big", "small"), ("heavy", "light"), ("clean", "dirty"), ("warm", "cold"), ("soft", "hard"),
    ("dry", "wet"), ("loud", "quiet"),
)  # fmt: skip
OPPOSITE = {a: b for pair in SENSES for a, b in (pair, pair[::-1])}
QUALITIES = tuple(OPPOSITE)
MOODS = ("happy", "sad", "brave", "shy", "kind", "proud", "tired", "wise", "young", "rich")
SKIES = ("gray", "bright", "windy", "foggy", "sunny", "cold", "warm", "long", "quiet", "fine")
WAYS = ("slowly", "quickly", "gladly", "softly", "loudly", "proudly", "sadly", "kindly")

# What goes with a word and with no other of its kind. Words that a model may exchange for one another in every sentence
# would get the same embedding, and then there is nothing to copy; these companions tell them apart.
SURNAME = {
    "Mira": "Moss", "Anna": "Hill", "Ida": "Reed", "Nora": "Frost", "Rosa": "Marsh",
    "Vera": "Vale", "Elsa": "Stone", "Greta": "Brook", "Clara": "Field", "Dora": "Storm",
    "Bran": "Pike", "Tom": "Snow", "Finn": "Dale", "Karl": "West", "Emil": "Bay",
    "Jon": "Cole", "Nils": "Lund", "Max": "Roth", "Theo": "Berg", "Paul": "Wick",
}  # fmt: skip
STUFF = {
    "lamp": "glass", "drum": "skin", "kite": "paper", "key": "iron", "map": "silk",
    "ring": "gold", "coat": "wool", "bell": "bronze", "cup": "clay", "flute": "bone",
    "hat": "felt", "book": "tales", "whistle": "tin", "mask": "bark", "doll": "rags",
    "crown": "silver",
}  # fmt: skip
PART = {
    "mill": "wheel", "barn": "loft", "inn": "sign", "bridge": "arch", "tower": "stairs",
    "market": "stalls", "harbor": "wall", "school": "yard", "lake": "shore", "castle": "moat",
    "forge": "fire", "church": "choir", "farm": "fence", "river": "bank",
}  # fmt: skip
DEED = {
    "baker": "baked", "sailor": "sailed", "teacher": "taught", "farmer": "plowed", "painter": "painted",
    "singer": "sang", "weaver": "wove", "hunter": "hunted", "carver": "carved", "dancer": "danced",
}  # fmt: skip
CALL = {
    "dog": "barked", "cat": "purred", "horse": "neighed", "hen": "clucked", "fox": "howled",
    "crow": "cawed", "frog": "croaked", "duck": "quacked",
}  # fmt: skip
LIKE = {
    "red": "rose", "blue": "sky", "green": "grass", "yellow": "straw", "white": "snow", "black": "coal",
    "brown": "nut", "gray": "ash",
}  # fmt: skip
VERY = {
    "old": "age", "new": "brand", "big": "mighty", "small": "pretty", "heavy": "lead", "light": "feather",
    "clean": "squeaky", "dirty": "muddy", "warm": "toasty", "cold": "ice", "soft": "pillow", "hard": "rock",
    "dry": "bone", "wet": "dripping", "loud": "booming", "quiet": "whisper",
}  # fmt: skip
USE = {
    "nails": "door", "eggs": "cake", "apples": "pie", "stones": "path", "plums": "jam",
    "seeds": "field",
}  # fmt: skip


class Draw:
    """Random draws that are the same on every machine and in every later Python.

    Only `random.Random.random` is used: it is the one method whose sequence Python promises to keep for a seed.
    """

    def __init__(self, stream: str, seed: int) -> None:
        self._random = random.Random(f"{stream}-{seed}").random

    def below(self, n: int) -> int:
        """Draw one of 0 … n-1, each as likely as the others."""
        return int(self._random() * n)

    def pick(self, options: Sequence[T]) -> T:
        """Draw one of `options`."""
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """Draw one of `options` with probability proportional to its weight."""
        point = self._random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            point -= weight
            if point < 0:
                return option
        return options[-1]  # only rounding comes here

    def sample(self, options: Sequence[T], n: int) -> list[T]:
        """Draw `n` different ones of `options`, in random order."""
        return self.shuffled(options)[:n]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return `options` in random order (Fisher and Yates)."""
        result = list(options)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result
