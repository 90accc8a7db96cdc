"""Addresses without their secrets, for messages, logs, files, and pages."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

HIDDEN = "***"
# A user name and a password before the host. The password may hold any character but white space and a slash, so the
# last @ before the path ends it.
USERINFO = re.compile(r"(?<=://)[^\s/?#]*@")
# Values in a query. A signed query is as good as a password, and its keys have many names: all values are hidden.
QUERY_VALUE = re.compile(r"(?<==)[^&#\s\"'<>`)\]},;]+")
URL_WITH_QUERY = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?\"'<>]*\?[^\s\"'<>]*")
# Keys of query parameters that give access: `sig`, `X-Amz-Signature`, `api_key`, `access_token`, `AWSAccessKeyId`, …
SECRET_KEY = re.compile(r"sig|token|key|secret|passw|pwd|credential|auth", re.IGNORECASE)


def redacted(text: object) -> str:
    """Return a URL, or a text with URLs in it, with `***` for user names, passwords, and values of queries.

    >>> redacted("no answer from http://me:secret@example.org/a?sig=1#b")
    'no answer from http://***@example.org/a?sig=***#b'
    """
    without_userinfo = USERINFO.sub(f"{HIDDEN}@", str(text))
    return URL_WITH_QUERY.sub(lambda match: QUERY_VALUE.sub(HIDDEN, match[0]), without_userinfo)


def secret_in_url(url: str) -> str | None:
    """Return which part of a URL is a secret: `a password`, or `the query parameter 'sig'`; None if none is."""
    try:
        parts = urlsplit(url)
    except ValueError:  # not a URL; who opens it says so
        return None
    if "@" in unquote(parts.netloc):
        return "a user name or password"
    keys = (key for key, _ in parse_qsl(parts.query, keep_blank_values=True) if SECRET_KEY.search(key))
    return next((f"the query parameter {key!r}" for key in keys), None)
