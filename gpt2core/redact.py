"""Addresses without their secrets, for messages, logs, files, and pages."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN = "***"
# A user name and a password before the host. Some programs take any character in a password, also a slash: what follows
# a colon and is no port belongs to it, up to the last @ of the word.
# `http:/`, `//`, and `http:\\` are misspelled, and the password is as secret.
USERINFO = re.compile(r"(?<=[:/\\][/\\])(?:[^\s/?#@:]*:(?!\d{1,5}(?:[/?#]|$))\S*@|[^\s/?#]*@)")
# These variables may hold an address with a password; whatever characters it has, it is hidden as a whole.
SECRET_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "GPT2CORE_MIRROR")
# Values in a query. A signed query is as good as a password, and its keys have many names: all values are hidden.
QUERY_VALUE = re.compile(r"(?<==)[^&#\s\"'<>]+|(?<=[?&])[^=&#\s\"'<>]+(?=[&#\s\"'<>]|$)")
URL_WITH_QUERY = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?\"'<>]*\?[^\s\"'<>]*")
FRAGMENT = re.compile(r"(?<=://)([^\s#\"'<>]*#)([^\s\"'<>]*)")  # of a URL
# Keys of query parameters that give access: `sig`, `X-Amz-Signature`, `api_key`, `access_token`, `AWSAccessKeyId`, …
SECRET_KEY = re.compile(r"sig|token|key|secret|pass|pwd|^pw$|credential|auth|jwt|hmac|^sas|^code$", re.IGNORECASE)


MIN_BASE64_CHARS = 8  # a shorter piece occurs in texts by chance


def redacted(text: object) -> str:
    """Return a URL, or a text with URLs in it, with `***` for user names, passwords, and values of queries.

    >>> redacted("no answer from http://me:secret@example.org/a?sig=1#b")
    'no answer from http://***@example.org/a?sig=***#b'
    """
    shown = str(text)
    for userinfo in _userinfos():
        shown = shown.replace(userinfo, HIDDEN)
    without_userinfo = USERINFO.sub(f"{HIDDEN}@", shown)
    without_queries = URL_WITH_QUERY.sub(lambda match: QUERY_VALUE.sub(HIDDEN, match[0]), without_userinfo)
    return FRAGMENT.sub(lambda match: match[1] + _without_secret_values(match[2]), without_queries)


def _without_secret_values(fragment: str) -> str:
    """Return a URL's fragment; without its values if one of the keys gives access. `sha256=…` stays."""
    keys = (piece.partition("=")[0] for piece in re.split(r"[&;]", fragment) if "=" in piece)
    return QUERY_VALUE.sub(HIDDEN, fragment) if any(map(SECRET_KEY.search, keys)) else fragment


def without_secret(text: str, secret: str, shown: str = HIDDEN) -> str:
    """Return a text with `shown` in place of a secret: as it is, percent-encoded, and in base64, alone or in a header.

    >>> without_secret("key=sk%2Babcdefgh", "sk+abcdefgh")
    'key=***'
    """
    for form in _forms(secret) if secret else ():
        text = text.replace(form, shown)
    return text


def _forms(secret: str) -> Iterator[str]:
    """Yield the texts by which a secret may appear."""
    yield secret
    for quoted in (quote(secret), quote(secret, safe="")):
        yield from (quoted, re.sub("%..", lambda escape: escape[0].lower(), quoted))
    for n_before in range(3):  # base64 has four characters for three bytes, so a secret has three forms in it
        encoded = base64.b64encode(b" " * n_before + secret.encode()).rstrip(b"=").decode()
        inner = encoded[n_before + bool(n_before) : -1]  # without the characters that its neighbors change
        if len(inner) >= MIN_BASE64_CHARS:
            yield from (inner, inner.translate(str.maketrans("+/", "-_")))


def _userinfos() -> Iterator[str]:
    """Yield the user name with the password in each of `SECRET_VARIABLES`."""
    for name in SECRET_VARIABLES:
        _, _, rest = os.environ.get(name, "").partition("://")
        userinfo, at, _ = rest.rpartition("@")
        if at and len(userinfo) > 3:
            yield userinfo


def secret_in_url(url: str) -> str | None:
    """Return which part of a URL is a secret: `a password`, or `the query parameter 'sig'`; None if none is."""
    if re.match(r"[a-z][a-z0-9+.-]*:[/\\]*[^/]*:[^/]*@", url, re.IGNORECASE):
        return "a user name or password"
    try:
        parts = urlsplit(url)
    except ValueError:  # not a URL; who opens it says so
        return None
    if "@" in unquote(parts.netloc):
        return "a user name or password"
    pieces = re.split(r"[&;]", f"{parts.query}&{parts.fragment}")
    keys = (key for piece in pieces for key, _ in parse_qsl(piece, keep_blank_values=True) if SECRET_KEY.search(key))
    return next((f"the query parameter {key!r}" for key in keys), None)
