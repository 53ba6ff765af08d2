"""Is this path ours, or the host's?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneai_middleware import Gateway, OneAIMiddleware


class Host:
    """A host that remembers what reached it, and what it answered."""

    def __init__(self):
        self.calls = []
        self.body = [b"page"]

    def __call__(self, environ, start_response):
        self.calls.append((environ, start_response))
        start_response("299 As It Is", [("X-Odd", "yes"), ("Connection", "x")])
        return self.body


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def mounted(host, make_gateway):
    return lambda **options: OneAIMiddleware(host, make_gateway(**options))


@pytest.fixture
def app(mounted):
    return mounted()


HOSTS_PATHS = [
    "/",
    "",
    "/page",
    "/oneaix",
    "/oneaix/v1/models",
    "/OneAI/v1/models",
    "/one",
    "/x/oneai/v1/models",
    "//oneai/v1/models",
    "/./oneai/v1/models",
    "/v1/models",
    "http://evil.example/oneai/v1/models",
    "oneai/v1/models",
    "/\u00f6neai",
    "/oneai%2Fv1",
]


@pytest.mark.parametrize("path", HOSTS_PATHS)
def test_a_path_outside_the_mount_reaches_the_host_untouched(mounted, host, path):
    """Conformance 8."""
    environ = {"PATH_INFO": path, "SCRIPT_NAME": "/app", "QUERY_STRING": "a=%20&b", "x.own": host}
    before = dict(environ)

    def start_response(status, headers, exc_info=None):
        raise AssertionError("only the host calls it")

    seen = []
    app = mounted()
    app.app = lambda *arguments: seen.append(arguments) or host.body
    assert app(environ, start_response) is host.body
    ((reached, given),) = seen
    assert reached is environ
    assert reached == before
    assert given is start_response


def test_what_the_host_answers_is_passed_on_as_it_is(mounted, host, send):
    reply = send(mounted(), "GET", "/page?x=1")
    assert reply.status == 299
    assert reply.header_list == [("X-Odd", "yes"), ("Connection", "x")]
    assert reply.body is host.body


def test_a_host_that_raises_raises(make_gateway, send):
    def host(environ, start_response):
        raise LookupError("the host's own")

    with pytest.raises(LookupError):
        send(OneAIMiddleware(host, make_gateway()), "GET", "/page")


@pytest.mark.parametrize(
    "path",
    [
        "/oneai",
        "/oneai/",
        "/oneai/v1",
        "/oneai/v1/",
        "/oneai/page",
        "/oneai/v1/../page",
        "/oneai/../page",
        "/oneai/v1/./models",
        "/oneai//",
        "/oneai/v1/models/../../../page",
    ],
)
def test_everything_below_the_mount_is_ours(mounted, host, send, headers, path):
    """Conformance 3."""
    reply = send(mounted(), "GET", path, headers=headers)
    assert (reply.status, reply.error["type"]) == (404, "invalid_request_error")
    assert host.calls == []


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing", "/v1/../page"])
def test_at_the_root_all_below_v1_is_ours(mounted, host, send, path):
    assert send(mounted(mount=""), "GET", path).error["code"] == "unknown_url"
    assert host.calls == []


@pytest.mark.parametrize("path", ["/", "", "/v1x", "/v2/models", "/health", "/oneai/v1", "/a/v1"])
def test_at_the_root_nothing_but_v1_is_ours(mounted, host, send, path):
    assert send(mounted(mount=""), "GET", path).status == 299


@pytest.mark.parametrize(
    ("mount", "path"),
    [("", "/v1/models"), ("/oneai", "/oneai/v1/models"), ("/a/b", "/a/b/v1/models")],
)
@pytest.mark.parametrize("script_name", ["", "/app", "/deep/er"])
def test_the_api_answers_below_any_mount_and_script_name(
    mounted, send, headers, mount, path, script_name
):
    """Conformance 9."""
    app = mounted(mount=mount)
    reply = send(app, "GET", path, headers=headers, SCRIPT_NAME=script_name)
    assert reply.json["object"] == "list"


def test_the_gateway_sees_the_mount_as_part_of_the_script_name(app, monkeypatch):
    seen = []
    monkeypatch.setattr(Gateway, "__call__", lambda self, environ, _: seen.append(environ) or [])
    environ = {"SCRIPT_NAME": "/app", "PATH_INFO": "/oneai/v1/models", "x.own": 1}
    app(environ, None)
    assert seen == [{"SCRIPT_NAME": "/app/oneai", "PATH_INFO": "/v1/models", "x.own": 1}]
    assert environ == {"SCRIPT_NAME": "/app", "PATH_INFO": "/oneai/v1/models", "x.own": 1}


def test_health_is_below_the_mount(mounted, send):
    assert send(mounted(), "GET", "/oneai/health").json == {"status": "ok"}


ANY_PATH = st.text(st.characters(max_codepoint=255))


@given(path=ANY_PATH | ANY_PATH.map("/oneai".__add__))
def test_every_path_is_either_the_hosts_or_ours(app, host, send, path):
    host.calls.clear()
    reply = send(app, "GET", "/", PATH_INFO=path)
    ours = path == "/oneai" or path.startswith("/oneai/")
    assert (bool(host.calls), reply.status == 299) == (not ours, not ours)


@given(path=ANY_PATH)
def test_any_path_below_the_mount_is_answered_in_json(app, send, path):
    reply = send(app, "GET", "/", PATH_INFO="/oneai/v1/" + path)
    assert reply.error["code"] in ("invalid_api_key", "unknown_url", "method_not_allowed")
