"""A backend that answers the questions it knows."""

from collections.abc import Iterator, Mapping
from typing import Any

from oneai_middleware.backends.base import Backend
from oneai_middleware.errors import ConfigurationError, InvalidRequest
from oneai_middleware.protocol.chat import ChatRequest, Item


class FAQBackend(Backend):
    """Gives the answer whose keyword stands in the question.

    :param answers: keyword to answer.
    """

    def __init__(self, *, answers: Mapping[str, str], **unknown: Any) -> None:
        super().__init__(**unknown)
        if not isinstance(answers, Mapping):
            raise ConfigurationError("answers: a table of keywords and their answers")
        self._answers = {keyword.lower(): answer for keyword, answer in answers.items()}

    def stream(self, request: ChatRequest) -> Iterator[Item]:
        """The answer, a line at a time."""
        question = request.text_of_last_user().lower()
        for keyword, answer in self._answers.items():
            if keyword in question:
                yield from answer.splitlines(keepends=True)
                return
        raise InvalidRequest(f"Ask about {', '.join(self._answers)}.", param="messages")
