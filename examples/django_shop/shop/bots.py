"""The model that the shop sells: any Python."""

from collections.abc import Iterator

from oneai_middleware.protocol.chat import ChatRequest


def answer(request: ChatRequest) -> Iterator[str]:
    """Say when the shop is open."""
    yield "We are open from nine to five. "
    yield f"You asked: {request.text_of_last_user()}"
