"""How a secret in a text is told. The config refuses one, and a command that is kept hides it."""

import re
from collections.abc import Iterator
from typing import Any

# A password in a URI: USER:PASSWORD@ before the host, where a slash in the password is forgiven.
# After the host, ":" and "@" are letters of an object's key; and HOST:PORT/ is no password.
PASSWORD = re.compile(r"://[^/?#\[\s]*:(?!\d+(?:[/?#]|$))[^@\s]*@(?:[^/?#\s]*@)?")
# Another secret: an option such as client_secret, or the signature of an Azure link.
SECRET_OPTION = re.compile(
    r"(?i)([?&](?:\w*(?:secret|token|password|signature|_key)\w*|sig)=)[^&\s]*"
)


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in it that is a value, under the key that leads to it."""
    if isinstance(value, str):
        yield key, value
    named = enumerate(value) if isinstance(value, list | tuple) else ()
    for name, inner in value.items() if isinstance(value, dict) else named:
        yield from strings(inner, f"{key}.{name}" if key else str(name))
