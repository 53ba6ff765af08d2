"""Whether a request that comes with a browser's cookies comes from the host's own pages.

A cookie is sent by the browser whoever wrote the page; without this check any site
could spend a visitor's balance.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import CrossSiteRequest

SAFE_METHODS = frozenset({"GET", "HEAD"})


def refuse_cross_site(environ: dict[str, Any], origins: Collection[str]) -> None:
    """Let a request pass that this site's pages or ``origins`` (``"https://shop.example"``) sent.

    Browsers say where a request comes from in ``Sec-Fetch-Site`` and ``Origin``. One
    that changes or costs something and says neither is refused as well.

    :raises CrossSiteRequest: another site sent it, or nobody can tell.
    """
    origin = environ.get("HTTP_ORIGIN")
    site = environ.get("HTTP_SEC_FETCH_SITE")
    # The browser's own judgement, which no page can write, holds first: behind a proxy
    # that ends TLS the origin that we would expect may begin with the wrong scheme.
    if site == "same-origin" or origin in origins:
        return
    # An address typed in, or a client that is no browser.
    reads = environ.get("REQUEST_METHOD") in SAFE_METHODS
    if reads and origin is None and site in (None, "none"):
        return
    raise CrossSiteRequest(
        "A login of this site works from its own pages only. Elsewhere use an API key."
    )
