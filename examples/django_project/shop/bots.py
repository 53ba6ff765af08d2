"""The project's own models: plain functions that any OpenAI client can call."""

from collections.abc import Iterator

from oneai_middleware.protocol.chat import ChatRequest

from .models import Product


def stock(request: ChatRequest) -> Iterator[str]:
    """Say how many there are of every product that the question names."""
    question = request.text_of_last_user().lower()
    named = [each for each in Product.objects.order_by("name") if each.name in question]
    yield "We have " if named else "We do not sell that."
    yield " and ".join(f"{each.stock} of the {each.name}" for each in named)
    yield "." if named else ""
