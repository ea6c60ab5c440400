"""URLs as one may show them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def masked(url: str) -> str:
    """The URL with its password replaced by ***; so is the rest of it if one cannot tell where that ends."""
    scheme, found, rest = url.partition("://")
    if not found and re.search(":.*@", url):  # who left the scheme out may have left the password in
        return f"***@{url.rpartition('@')[2]}"
    try:
        # If this is no number it is the beginning of a password that holds one of / ? #.
        _ = urlsplit(url).port
    except ValueError:
        return f"{scheme}://***"
    netloc = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, host = netloc.rpartition("@")
    if at and ":" in user:
        url = f"{scheme}://{user.partition(':')[0]}:***@{host}{rest[len(netloc) :]}"
    return re.sub(r"([?&]password=)[^&]*", r"\1***", url)  # drivers take it there too
