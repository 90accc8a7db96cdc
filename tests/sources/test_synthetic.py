"""The embedded data: the grammar's probabilities against enumeration and counting, the data against its promises."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from statistics import fmean, pstdev

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gpt2core.errors import UserError
from gpt2core.sources.synthetic import (
    generate_instructions,
    generate_messages,
    generate_tales,
    log2_probability,
    parses_sentence,
    split_sentences,
)
from gpt2core.sources.synthetic.grammar import END, START, Grammar
from gpt2core.sources.synthetic.instructions import KINDS
from gpt2core.sources.synthetic.lexicon import NAMES, Draw
from gpt2core.sources.synthetic.messages import N_MESSAGES
from gpt2core.sources.synthetic.tales import FORMS, PLOT, ROLES

# Small enough to write out by hand. "{+b}" and "x" make two ways to write "x.", and `a` and `b` never hold one value.
TOY = Grammar(
    {
        START: [(1, "{+a} or {+b}.", "more"), (3, "Only {+a}.", END)],
        "more": [(1, "Again {a}.", END), (1, "Again {+b}.", END), (2, "No {b:loud}.", END)],
    },
    {"a": ("x", "y", "z"), "b": ("x", "y", "z")},
    {"loud": {"x": "X", "y": "Y", "z": "Z"}},
)


def toy_by_hand() -> dict[str, float]:
    table: Counter[str] = Counter()
    for a in "xyz":
        table[f"Only {a}."] += 3 / 4 / 3
    for a, b in itertools.permutations("xyz", 2):
        p = 1 / 4 / 3 / 2
        third = ({"x", "y", "z"} - {a, b}).pop()
        table[f"{a} or {b}. Again {a}."] += p / 4
        table[f"{a} or {b}. Again {third}."] += p / 4
        table[f"{a} or {b}. No {b.upper()}."] += p / 2
    return dict(table)


def test_probabilities_of_a_small_grammar_are_those_worked_out_by_hand() -> None:
    table = toy_by_hand()
    assert math.isclose(sum(table.values()), 1.0)
    for text, p in table.items():
        assert math.isclose(2 ** TOY.log2_probability(text), p, rel_tol=1e-12), text


def test_two_ways_to_write_one_text_are_added_up() -> None:
    twice = Grammar({START: [(1, "{+a}.", END), (1, "x.", END)]}, {"a": ("x", "y")}, {})
    assert math.isclose(2 ** twice.log2_probability("x."), 1 / 2 * 1 / 2 + 1 / 2)
    assert math.isclose(2 ** twice.log2_probability("y."), 1 / 4)


def chi_square_bound(degrees: int) -> float:
    """Return a bound that chi-square passes once in about 30,000 times (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.0 * math.sqrt(2 / (9 * degrees))) ** 3


def test_draws_follow_the_probabilities() -> None:
    n, draw, table = 20_000, Draw("toy", 0), toy_by_hand()
    counts = Counter(TOY.generate(draw) for _ in range(n))
    assert counts.keys() <= table.keys()
    chi_square = sum((counts[text] - n * p) ** 2 / (n * p) for text, p in table.items())
    assert chi_square < chi_square_bound(len(table) - 1)


def test_openings_of_tales_follow_their_weights() -> None:
    n = 4_000
    heads = Counter(tale.split()[0] for tale in generate_tales(3, n))
    weights: Counter[str] = Counter()
    for weight, template, _ in PLOT[START]:
        weights[template.split()[0]] += weight
    total = sum(weights.values())
    chi_square = sum((heads[w] - n * p / total) ** 2 / (n * p / total) for w, p in weights.items())
    assert heads.keys() == weights.keys()
    assert chi_square < chi_square_bound(len(weights) - 1)


def test_entropy_of_a_tale_agrees_with_a_walk_through_the_plot() -> None:
    """Every fresh value of a tale is one of a known number, so its surprise can be counted along the walk itself."""
    rng, walked = random.Random(5), []
    for _ in range(1_500):
        bits, node, held = 0.0, START, {}
        while node != END:
            total = sum(weight for weight, _, _ in PLOT[node])
            weight, template, following = rng.choices(PLOT[node], [step[0] for step in PLOT[node]])[0]
            bits -= math.log2(weight / total)
            for part in template.split("{+")[1:]:
                role = part[: part.index("}")].split(":")[0]
                free = [w for w in ROLES[role] if w not in {v for r, v in held.items() if ROLES[r] == ROLES[role]}]
                held[role] = rng.choice(free)
                bits += math.log2(len(free))
            node = following
        walked.append(bits)
    scored = [-log2_probability(tale) for tale in generate_tales(8, 1_500)]
    mean_a, mean_b = fmean(walked), fmean(scored)
    error = math.hypot(pstdev(walked), pstdev(scored)) / math.sqrt(1_500)
    assert abs(mean_a - mean_b) < 4 * error


def test_tales_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    assert generate_tales(1, 30) == generate_tales(1, 30)
    assert generate_tales(1, 30) == generate_tales(1, 60)[:30]
    assert not set(generate_tales(1, 30)) & set(generate_tales(2, 30))
    # Draws are promised to be the same on every machine and Python: these numbers may not change by themselves.
    draw = Draw("pinned", 7)
    assert [draw.below(100) for _ in range(6)] == PINNED_DRAWS


PINNED_DRAWS = [86, 43, 30, 50, 22, 43]


def test_tales_are_plain_and_hardly_ever_repeat() -> None:
    tales = generate_tales(4, 2_000)
    assert all(tale.isascii() and "\n" not in tale and "{" not in tale for tale in tales)
    assert len(set(tales)) == len(tales)


def test_facts_return_in_tales() -> None:
    """Most of what names, places and things a tale mentions, it mentions again in a later sentence."""
    again = once = 0
    for tale in generate_tales(5, 200):
        counts = Counter(name for sentence in split_sentences(tale) for name in NAMES if name in sentence)
        again += sum(n > 1 for n in counts.values())
        once += sum(n == 1 for n in counts.values())
    assert again > 10 * once


def test_every_sentence_of_a_tale_parses() -> None:
    for tale in generate_tales(6, 200):
        sentences = split_sentences(tale)
        assert " ".join(sentences) == tale
        assert all(parses_sentence(sentence) for sentence in sentences)


@pytest.mark.parametrize("spoil", [
    lambda tale: tale[:-1],
    lambda tale: tale + " The end.",
    lambda tale: tale.replace(" the ", " a ", 1) if " the " in tale else "",
    lambda tale: " " + tale,
    lambda tale: tale + " " + tale,
    lambda tale: "",
])  # fmt: skip
def test_a_text_that_the_grammar_cannot_write_is_refused(spoil) -> None:
    for tale in generate_tales(7, 20):
        with pytest.raises(ValueError, match="no step fits at character"):
            log2_probability(spoil(tale))


def test_a_tale_that_forgets_its_facts_is_refused_though_its_sentences_parse() -> None:
    refused = 0
    for tale in generate_tales(9, 50):
        hero = next(name for name in NAMES if f" {name} " in tale)
        stranger = next(name for name in NAMES if name not in tale)
        *before, last = split_sentences(tale)
        forgetful = " ".join([*before, last.replace(hero, stranger)])
        if forgetful != tale and parses_sentence(last.replace(hero, stranger)):
            refused += 1
            with pytest.raises(ValueError):
                log2_probability(forgetful)
    assert refused > 20


@pytest.mark.parametrize("sentence", ["", "Mira", "Mira slept", "Sleep was Mira.", "the lamp was red like roses.",
                                      "The lamp was red like grass.", "Mira Pike."])  # fmt: skip
def test_what_is_no_sentence_of_the_grammar_does_not_parse(sentence: str) -> None:
    assert not parses_sentence(sentence)


def test_quoted_speech_is_not_cut() -> None:
    text = 'Tom wrote: "Come. Now!" "Who is it?" asked Ida. "It is I," said Tom. Ida sang.'
    assert split_sentences(text) == [
        'Tom wrote: "Come. Now!"', '"Who is it?" asked Ida.', '"It is I," said Tom.', "Ida sang."
    ]  # fmt: skip


def test_no_tales_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match="n_documents is 0"):
        generate_tales(1, 0)


def test_forms_cover_their_roles() -> None:
    for table in FORMS.values():
        assert any(set(words) <= set(table) for words in ROLES.values())


def test_messages_are_many_distinct_and_a_third_spam() -> None:
    messages = generate_messages(1)
    assert messages == generate_messages(1) != generate_messages(2)
    assert len(messages) == N_MESSAGES >= 2_000
    assert len({text for _, text in messages}) == N_MESSAGES
    counts = Counter(label for label, _ in messages)
    assert counts.keys() == {"ham", "spam"}
    assert abs(counts["spam"] / N_MESSAGES - 1 / 3) < 0.01


def test_words_alone_mislead() -> None:
    messages = generate_messages(1)
    spam = [text for label, text in messages if label == "spam"]
    ham = [text for label, text in messages if label == "ham"][: len(spam)]
    texts = [*spam, *ham]
    labels = [1] * len(spam) + [0] * len(ham)
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    train, test = order[: int(0.7 * len(order))], order[int(0.8 * len(order)) :]
    for vectorizer, at_most in ((TfidfVectorizer(), 0.95), (TfidfVectorizer(ngram_range=(1, 2)), 0.97)):
        model = make_pipeline(vectorizer, LogisticRegression(max_iter=500))
        model.fit([texts[i] for i in train], [labels[i] for i in train])
        assert 0.75 < model.score([texts[i] for i in test], [labels[i] for i in test]) <= at_most


@pytest.mark.parametrize("seed", [1, 2])
def test_instructions_are_many_and_no_input_comes_twice(seed: int) -> None:
    entries = generate_instructions(seed)
    assert entries == generate_instructions(seed) != generate_instructions(seed + 1)
    assert len(entries) >= 1_100
    assert len(KINDS) >= 12
    assert all(entry.keys() == {"instruction", "input", "output"} for entry in entries)
    assert all(entry["instruction"] and entry["output"] for entry in entries)
    assert len({(entry["instruction"], entry["input"]) for entry in entries}) == len(entries)
    inputs = [entry["input"] for entry in entries if entry["input"]]
    assert len(set(inputs)) == len(inputs)
    assert 0.02 < 1 - len(inputs) / len(entries) < 0.3


def test_answers_about_a_story_depend_on_the_story() -> None:
    answers: dict[str, set[str]] = {}
    for entry in generate_instructions(1):
        answers.setdefault(entry["instruction"], set()).add(entry["output"])
    repeated = [outputs for instruction, outputs in answers.items() if instruction.startswith("Where is the")]
    assert sum(len(outputs) > 1 for outputs in repeated) > 0.9 * len(repeated)
