"""The option ``transport`` of a provider: which words it takes, and what they make."""

import pytest

from oneai_middleware import ConfigurationError, Gateway
from oneai_middleware.backends.openai import OpenAIBackend
from oneai_middleware.backends.openai.http_client_transport import HTTPClientTransport
from oneai_middleware.backends.openai.requests_transport import RequestsTransport
from oneai_middleware.backends.openai.transports import TRANSPORTS


class Own:
    """A transport of somebody's own."""

    def __init__(self, *, proxy, verify):
        self.options = (proxy, verify)

    def open(self, url, headers, body, timeouts):
        raise NotImplementedError

    def close(self):
        pass


def make_own(proxy, verify):
    return Own(proxy=proxy, verify=verify)


def transport_of(**options):
    return OpenAIBackend(base_url="http://127.0.0.1/v1", **options)._transport


def test_a_word_names_one_of_ours_and_requests_is_the_default():
    assert type(transport_of()) is RequestsTransport
    assert type(transport_of(transport="requests")) is RequestsTransport
    assert type(transport_of(transport="http.client")) is HTTPClientTransport


@pytest.mark.parametrize("name", ["Own", "make_own"])
def test_a_path_names_a_class_or_a_function_that_is_given_the_options(monkeypatch, name):
    monkeypatch.setattr("oneai_middleware.testing.Own", Own, raising=False)
    monkeypatch.setattr("oneai_middleware.testing.make_own", make_own, raising=False)
    proxy = "http://127.0.0.1:9"
    made = transport_of(transport=f"oneai_middleware.testing:{name}", proxy=proxy, verify=False)
    assert made.options == (proxy, False)


def test_an_object_is_taken_as_it_is():
    own = Own(proxy=None, verify=True)
    assert transport_of(transport=own) is own


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("http_client", "unknown name 'http_client'; did you mean 'http.client'?"),
        ("curl", "unknown name 'curl'; known: http.client, requests"),
        ("", "unknown name ''; known: http.client, requests"),
        ("nowhere:Transport", "'nowhere:Transport' cannot be imported: ModuleNotFoundError"),
        ("json:Transport", "'json:Transport' cannot be imported: AttributeError"),
        ("json:", "'json:' is neither a class nor a function"),
        (7, "int is no Transport"),
        (None, "NoneType is no Transport"),
        (Own, "Own is a class; an object is wanted"),
    ],
)
def test_what_names_no_transport_stops_the_start(spec, told):
    row = {"base_url": "http://127.0.0.1/v1", "transport": spec}
    with pytest.raises(ConfigurationError) as caught:
        Gateway(providers={"own": row})
    assert str(caught.value).startswith("providers['own']: transport: ")
    assert told in str(caught.value)


def test_what_a_path_makes_must_be_a_transport(monkeypatch):
    monkeypatch.setattr("oneai_middleware.testing.make", lambda **options: 7, raising=False)
    with pytest.raises(ConfigurationError, match="transport: int is no Transport"):
        transport_of(transport="oneai_middleware.testing:make")


def test_a_proxy_that_is_reached_over_tls_is_for_requests_alone():
    options = {"base_url": "http://127.0.0.1/v1", "proxy": "https://127.0.0.1:9"}
    assert OpenAIBackend(**options, transport="requests")
    with pytest.raises(ConfigurationError, match="^proxy: .*'requests'"):
        OpenAIBackend(**options, transport="http.client")


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_transport_shows_no_permission_of_its_proxy(name):
    assert "s3cret" not in repr(transport_of(transport=name, proxy="http://me:s3cret@127.0.0.1:9"))


def test_one_that_cannot_be_made_is_named():
    with pytest.raises(ConfigurationError, match=r"^transport: 'json:loads' cannot be made: "):
        OpenAIBackend(base_url="http://127.0.0.1/v1", transport="json:loads")


def refuse(*, proxy, verify):
    raise ValueError(f"no such proxy: {proxy}")


def test_one_that_cannot_be_made_shows_no_permission_of_its_proxy(monkeypatch):
    monkeypatch.setattr("oneai_middleware.testing.refuse", refuse, raising=False)
    with pytest.raises(
        ConfigurationError, match=r"'oneai_middleware.testing:refuse' .* raised ValueError$"
    ):
        transport_of(
            transport="oneai_middleware.testing:refuse", proxy="http://me:s3cret@127.0.0.1:9"
        )
