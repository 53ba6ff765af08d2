"""Whether a request that comes with a browser's cookies comes from the host's own pages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware.errors import CrossSiteRequest
from oneai_middleware.integrations.cross_site import refuse_cross_site

OURS = "https://shop.example"


def passes(method: str, origin: str | None = None, site: str | None = None) -> bool:
    environ = {"REQUEST_METHOD": method}
    if origin is not None:
        environ["HTTP_ORIGIN"] = origin
    if site is not None:
        environ["HTTP_SEC_FETCH_SITE"] = site
    try:
        refuse_cross_site(environ, {OURS})
    except CrossSiteRequest:
        return False
    return True


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (OURS, "same-origin"),
        (OURS, None),
        (None, "same-origin"),
        # Behind a proxy that ends TLS we expect the origin in another scheme.
        ("http://shop.example", "same-origin"),
    ],
)
def test_our_own_pages_pass(method: str, origin: str | None, site: str | None) -> None:
    assert passes(method, origin, site)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    ("origin", "site"),
    [
        ("https://evil.example", None),
        ("https://evil.example", "cross-site"),
        ("https://www.shop.example", "same-site"),
        ("https://shop.example:8443", None),
        ("https://shop.example.evil.example", None),
        ("http://shop.example", None),
        ("HTTPS://SHOP.EXAMPLE", None),
        ("null", None),
        ("", None),
        (None, "cross-site"),
        (None, "same-site"),
        (None, ""),
        (None, "same-origin, cross-site"),
    ],
)
def test_pages_of_others_are_refused(method: str, origin: str | None, site: str | None) -> None:
    assert not passes(method, origin, site)


@pytest.mark.parametrize("site", [None, "none"])
def test_what_no_page_sent_may_read_and_nothing_else(site: str | None) -> None:
    assert passes("GET", site=site)
    assert passes("HEAD", site=site)
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", ""):
        assert not passes(method, site=site)


def test_an_origin_that_is_trusted_passes_from_another_site() -> None:
    assert passes("POST", OURS, "cross-site")
    with pytest.raises(CrossSiteRequest):
        refuse_cross_site({"REQUEST_METHOD": "POST", "HTTP_ORIGIN": OURS}, set())


headers = st.one_of(
    st.none(),
    st.sampled_from([OURS, "null", "", "same-origin", "same-site", "cross-site", "none"]),
    st.binary().map(lambda data: data.decode("latin-1")),
    st.text(),
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE"]) | st.text(),
    origin=headers,
    site=headers,
    others=st.dictionaries(st.sampled_from(["HTTP_HOST", "HTTP_REFERER", "HTTP_COOKIE"]), headers),
)
def test_whatever_the_headers_hold_only_our_own_pages_may_spend(
    method: str, origin: str | None, site: str | None, others: dict[str, Any]
) -> None:
    environ = {
        **others,
        "REQUEST_METHOD": method,
        "HTTP_ORIGIN": origin,
        "HTTP_SEC_FETCH_SITE": site,
    }
    environ = {name: value for name, value in environ.items() if value is not None}
    try:
        refuse_cross_site(environ, {OURS})
    except CrossSiteRequest:
        return
    assert origin == OURS or site == "same-origin" or (method in ("GET", "HEAD") and not origin)
