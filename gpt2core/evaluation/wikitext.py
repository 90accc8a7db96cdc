"""WikiText as people write it: its files have spaces between words and marks, which GPT-2 has never seen.

The GPT-2 paper (Radford et al. 2019, section 3.1) undoes such tokenization before it predicts, and counts the nats over
the words of the file as it is distributed. It does not print its rules; these are the usual ones (Megatron-LM's, which
lm-eval took over), a line at a time, so that a quotation mark without a partner spoils one line only, and without their
rule for the Penn Treebank, where every number is an N. `<unk>` stays what it is.
"""

from __future__ import annotations

import re

# In this order: a later rule sees what an earlier one has made.
_REPLACE = (
    ("s '", "s'"),
    (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
_PAIRS = tuple(
    re.compile(rf"({left})\s*([^{inside}]*?)\s*({right})")
    for left, inside, right in (
        (r"\(", r"\)", r"\)"),
        (r"\[", r"\]", r"\]"),
        (r"{", r"}", r"}"),
        (r"\"", r"\"", r"\""),
        ("'", "'", "'"),
    )
)
_REPLACE_LAST = (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" 's", "'s"))


def detokenize(text: str) -> str:
    r"""The text with its spaces as people set them; as many lines as before.

    >>> detokenize(' = Robert = \n \n He said ( in 2000 ) : " It \'s a three @-@ part film , is n\'t it ? " \n')
    '= Robert =\n\nHe said (in 2000): "It\'s a three-part film, is n\'t it?"\n'
    """
    return "\n".join(map(_line, text.split("\n")))


def _line(line: str) -> str:
    for found, put in _REPLACE:
        line = line.replace(found, put)
    for pair in _PAIRS:
        line = pair.sub(r"\1\2\3", line)
    for found, put in _REPLACE_LAST:
        line = line.replace(found, put)
    return line.strip(" ")
