"""WikiText without its tokenization marks: its files have spaces between words and punctuation, unlike GPT-2's data.

The GPT-2 paper (Radford et al. 2019, section 3.1) removes such marks before prediction, and divides the loss by the
words of the distributed file. It does not print its rules. These are Megatron-LM's, which lm-eval also uses, applied
line by line, so that a single quotation mark affects one line only, and without the rule for the numbers of the Penn
Treebank. `<unk>` is not changed.
"""

from __future__ import annotations

import re

# In this order: a later rule sees the result of an earlier one.
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
    r"""Return the text with spaces as people write them; the number of lines stays the same.

    >>> detokenize(' = Robert = \n \n He said ( in 2000 ) : " It \'s a three @-@ part film , is n\'t it ? " \n')
    '= Robert =\n\nHe said (in 2000): "It\'s a three-part film, is n\'t it?"\n'
    """
    return "\n".join(map(_line, text.split("\n")))


def _line(line: str) -> str:
    for old, new in _REPLACE:
        line = line.replace(old, new)
    for pair in _PAIRS:
        line = pair.sub(r"\1\2\3", line)
    for old, new in _REPLACE_LAST:
        line = line.replace(old, new)
    return line.strip(" ")
