"""Addresses of databases. A configuration is written down in many places, so its addresses hold no passwords."""

from __future__ import annotations

import json
import os
import re

HIDDEN = "***"
"""What stands in an address in place of its password."""

_REMEMBERED = "POSTTRAIN_DATABASE_ADDRESSES"
_DATABASE = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
_AFTER_USER = re.compile(r"(?<=://)([^/?#@:]*):[^/?#]*(?=@)")
_IN_QUERY = re.compile(r"([?&](?:password|sslpassword)=)[^&#]*", re.IGNORECASE)


def is_database_url(text: str) -> bool:
    """Whether this is an address rather than a path."""
    return _DATABASE.match(text) is not None


def without_password(url: str) -> str:
    """The address with ``***`` in place of every password in it."""
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _AFTER_USER.sub(rf"\1:{HIDDEN}", url))


def hidden(url: str) -> str:
    """The address without its password, which this process and those that it starts remember for ``whole``."""
    shown = without_password(url)
    if shown != url:  # in the environment: a stage of a pipeline is a process that reads a copy of the configuration
        os.environ[_REMEMBERED] = json.dumps(_remembered() | {shown: url})
    return shown


def whole(url: str) -> str:
    """The address with the password that ``hidden`` took out of it, where that is remembered."""
    return _remembered().get(url, url)


def _remembered() -> dict[str, str]:
    try:
        found = json.loads(os.environ.get(_REMEMBERED, "{}"))
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
