"""A grammar of texts in which facts recur; it generates texts and computes their exact probability.

A `Grammar` is a walk from node to node of a plot. Each step of the walk writes one template: plain text with slots.

    {+hero}      draw a new value for the role `hero`, write it, and remember it
    {hero}       write the remembered value of `hero`: the fact that recurs
    {hero:She}   write a form of that value, looked up in a table

Steps are drawn by weight. New values are drawn uniformly from those words of the role that no role has at that moment.
`generate` draws a text. `log2_probability` sums over all walks that write the text, so it is exact even if two walks
write the same words. `parses_sentence` checks one sentence alone. All three use the same compiled templates.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpt2core.sources.synthetic.lexicon import Draw

START, END = "start", "end"
_SLOT = re.compile(r"\{(\+?)(\w+)(?::(\w+))?\}")

Scene = dict[str, str]  # role -> the value it holds


@dataclass(frozen=True)
class Slot:
    """A place in a template that a value fills."""

    role: str
    fresh: bool
    form: str | None


@dataclass(frozen=True)
class Step:
    """A possible step from a node: a template, its probability at the node, and the next node."""

    probability: float
    pieces: tuple[str | Slot, ...]
    next: str


class Grammar:
    """A plot, the words of each role, and the tables of their forms.

    Args:
        plot: node -> steps `(weight, template, next node)`; the walk starts at `start` and stops at `end`.
        words: role -> its possible values. Roles with equal words never have the same value at the same time.
        forms: name of a form -> {value: the value in this form}.
    """

    def __init__(
        self,
        plot: Mapping[str, Sequence[tuple[float, str, str]]],
        words: Mapping[str, Sequence[str]],
        forms: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._words = {role: tuple(values) for role, values in words.items()}
        self._forms = forms
        self._plot: dict[str, tuple[Step, ...]] = {}
        for node, steps in plot.items():
            total = sum(weight for weight, _, _ in steps)
            self._plot[node] = tuple(Step(weight / total, compile_template(text), to) for weight, text, to in steps)
        templates = [text for steps in plot.values() for _, text, _ in steps]
        sentences = {sentence for template in templates for sentence in split_sentences(template)}
        self._sentences = [compile_template(sentence) for sentence in sorted(sentences)]

    def generate(self, draw: Draw) -> str:
        """Draw one text."""
        node, scene, written = START, Scene(), []
        while node != END:
            steps = self._plot[node]
            step = draw.weighted(steps, [step.probability for step in steps])
            text = ""
            for piece in step.pieces:
                if isinstance(piece, Slot):
                    if piece.fresh:
                        scene[piece.role] = draw.pick(self._fresh_values(piece.role, scene))
                    text += self._written(piece, scene[piece.role])
                else:
                    text += piece
            written.append(text)
            node = step.next
        return " ".join(written)

    def log2_probability(self, text: str) -> float:
        """Return log2 of the probability that `generate` draws exactly `text`.

        Raises ValueError, saying where, if it never does.
        """
        # A state is (characters read, node, scene); the walks that reach it are added up. Each step reads at least one
        # character, so the states in order of characters read are complete when their turn comes.
        State = tuple[int, str, tuple[tuple[str, str], ...]]
        log2_mass: dict[State, float] = {(0, START, ()): 0.0}
        queue: list[State] = [(0, START, ())]
        furthest, total = 0, -math.inf
        while queue:
            state = heapq.heappop(queue)
            position, node, held = state
            furthest = max(furthest, position)
            for step in self._plot[node]:
                for stop, scene, log2_p in self._match(step.pieces, 0, text, position, dict(held)):
                    log2_p += log2_mass[state] + math.log2(step.probability)
                    if step.next == END:
                        if stop == len(text):
                            total = _log2_add(total, log2_p)
                    elif text.startswith(" ", stop):
                        new: State = (stop + 1, step.next, tuple(sorted(scene.items())))
                        if new not in log2_mass:
                            heapq.heappush(queue, new)
                        log2_mass[new] = _log2_add(log2_mass.get(new, -math.inf), log2_p)
        if total == -math.inf:
            raise ValueError(f"the grammar cannot write this text: no step fits at character {furthest}, "
                             f"before {text[furthest:furthest + 60]!r}")  # fmt: skip
        return total

    def parses_sentence(self, sentence: str) -> bool:
        """Return whether any text of the grammar contains exactly this sentence."""
        return any(
            stop == len(sentence)
            for pieces in self._sentences
            for stop, _, _ in self._match(pieces, 0, sentence, 0, {})
        )

    def _match(
        self, pieces: Sequence[str | Slot], first: int, text: str, position: int, scene: Scene
    ) -> Iterator[tuple[int, Scene, float]]:
        """Yield each (end, scene, log2 probability) with which `pieces[first:]` write the text from `position` on.

        A role that holds nothing yet may hold any value: so a sentence is read without what came before it.
        """
        for index in range(first, len(pieces)):
            piece = pieces[index]
            if isinstance(piece, str):
                if not text.startswith(piece, position):
                    return
                position += len(piece)
            elif piece.fresh or piece.role not in scene:
                values = self._fresh_values(piece.role, scene)
                for value in values:
                    written = self._written(piece, value)
                    if text.startswith(written, position):
                        begin, bound = position + len(written), scene | {piece.role: value}
                        for stop, after, log2_p in self._match(pieces, index + 1, text, begin, bound):
                            yield stop, after, log2_p - math.log2(len(values))
                return
            else:
                written = self._written(piece, scene[piece.role])
                if not text.startswith(written, position):
                    return
                position += len(written)
        yield position, scene, 0.0

    def _fresh_values(self, role: str, scene: Scene) -> list[str]:
        words = self._words[role]
        held = {value for other, value in scene.items() if self._words[other] == words}
        return [value for value in words if value not in held]

    def _written(self, slot: Slot, value: str) -> str:
        return self._forms[slot.form][value] if slot.form else value


def compile_template(template: str) -> tuple[str | Slot, ...]:
    """Cut a template into plain text and slots.

    >>> compile_template("So {hero} slept.")
    ('So ', Slot(role='hero', fresh=False, form=None), ' slept.')
    """
    pieces: list[str | Slot] = []
    position = 0
    for match in _SLOT.finditer(template):
        pieces.append(template[position : match.start()])
        pieces.append(Slot(match[2], match[1] == "+", match[3]))
        position = match.end()
    pieces.append(template[position:])
    return tuple(piece for piece in pieces if piece)


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences. A quotation is not split, and stays with the words that introduce it.

    >>> split_sentences('Mira slept. "Who slept?" asked Tom. "I did," said Mira.')
    ['Mira slept.', '"Who slept?" asked Tom.', '"I did," said Mira.']
    """
    sentences, begin = [], 0
    for match in re.finditer(r"[.!?]\"?(?= +[\"A-Z{]|\s*$)", text):
        if text.count('"', begin, match.end()) % 2 == 0:
            sentences.append(text[begin : match.end()].strip())
            begin = match.end()
    if text[begin:].strip():
        sentences.append(text[begin:].strip())
    return sentences


def _log2_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log2(1.0 + 2.0 ** (low - high))
