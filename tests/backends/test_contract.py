"""Our own backends keep the contract that plug-ins are held to."""

import functools

import pytest

from oneai_middleware.backends.base import Backend
from oneai_middleware.backends.echo import EchoBackend
from oneai_middleware.backends.function import FunctionBackend
from oneai_middleware.backends.openai import OpenAIBackend
from oneai_middleware.errors import BackendOverloaded
from oneai_middleware.protocol.gather import gather
from oneai_middleware.testing import BackendContract


class TestEchoBackend(BackendContract):
    backend_class = EchoBackend

    def make_slow_backend(self):
        return EchoBackend(delay=3600)

    def make_refusing_backend(self):
        return EchoBackend(fail="misconfigured")


def answer(request):
    yield "You asked: "
    yield request.text_of_last_user()


def wait(request):
    yield "Let me think."
    request.cancellation.wait(3600)


def refuse(request):
    raise BackendOverloaded("closed today")


class TestFunctionBackend(BackendContract):
    backend_class = staticmethod(functools.partial(FunctionBackend, answer))

    def make_slow_backend(self):
        return FunctionBackend(wait)

    def make_refusing_backend(self):
        return FunctionBackend(refuse)


class TestOpenAIBackend(BackendContract):
    backend_class = OpenAIBackend

    @pytest.fixture(autouse=True)
    def scripted(self, provider, completion):
        self.provider = provider
        self.completion = completion
        self.waiting = []
        self.options = {"base_url": provider.url, "api_key": "sk-up"}
        provider.respond = self.echo

    def make_slow_backend(self):
        self.provider.respond = self.begin
        return self.make_backend()

    def make_refusing_backend(self):
        self.provider.respond = lambda turn: turn.answer({"error": {"message": "no"}}, 401)
        return self.make_backend()

    def held(self):
        return sum(not turn.left.is_set() for turn in self.waiting)

    def echo(self, turn):
        if turn.method == "GET":
            turn.answer({"data": []})
        elif turn.json["stream"]:
            turn.start_stream()
            for word in ("You asked: ", turn.json["messages"][-1]["content"]):
                turn.text(word)
            turn.text("", finish="stop")
            turn.event("[DONE]")
        else:
            turn.answer(self.completion("You asked: " + turn.json["messages"][-1]["content"]))

    def begin(self, turn):
        self.waiting.append(turn)
        try:
            if turn.json["stream"]:
                turn.start_stream()
                turn.text("Let me think.")
            turn.hold()
        except OSError:
            turn.left.set()


class TestFoldingBackend(TestOpenAIBackend):
    """Asked for an answer in one piece, it gathers a stream."""

    @pytest.fixture(autouse=True)
    def folding(self, scripted):
        self.options["dialect"] = "alibaba"


# --- and the contract notices one that does not -------------------------------------


class Spoken(Backend):
    """Keeps what it is asked, so that streams side by side mix."""

    def stream(self, request):
        self.question = request.text_of_last_user()
        yield "You asked: "
        yield self.question

    def complete(self, request):
        return gather(["Something else."])


class Late(Backend):
    def stream(self, request):
        yield "Well, "
        raise BackendOverloaded("closed today")


class Bytes(Backend):
    def stream(self, request):
        yield b"bytes"


@pytest.mark.parametrize(
    ("backend", "broken"),
    [
        (Spoken(), "a_stream_and_a_whole_answer_say_the_same"),
        (Spoken(), "streams_side_by_side_do_not_mix"),
        (FunctionBackend(lambda request: request.body.update(seen=1) or "ok"), "left_as_it_was"),
        (Late(), "a_refusal_comes_before_the_first_item"),
        (Bytes(), "a_stream_is_made_of"),
        (EchoBackend(text=""), "a_refusal_comes_before_the_first_item"),
        (EchoBackend(text="does not wait"), "a_cancelled_call_ends_its_stream"),
    ],
)
def test_the_contract_notices_a_broken_backend(backend, broken):
    [test] = [name for name in vars(BackendContract) if broken in name]
    with pytest.raises((AssertionError, TypeError, pytest.fail.Exception)):
        getattr(BackendContract(), test)(backend)
