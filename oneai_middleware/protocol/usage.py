"""How many tokens a call took, as every provider says it and as we say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ABSURD = 2 * 10**7
"""No model has a context of twenty million tokens; a provider that says so is not believed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call.

    ``cached_tokens`` are part of ``prompt_tokens`` and ``reasoning_tokens`` part
    of ``completion_tokens``: they are never added on top. ``estimated`` says that
    the provider gave no figures. ``extras`` are the provider's other fields.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    @classmethod
    def read(cls, raw: Any) -> Usage | None:
        """The usage object of a provider; ``None`` if it is missing or absurd.

        Cached tokens are found where OpenAI, DeepSeek and Moonshot put them. A
        subset larger than its whole is cut down to it.
        """
        if raw is None or not isinstance(raw, Mapping):
            return None
        prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
        if prompt is None or completion is None:
            return None
        cached = reasoning = 0
        for told in (
            _sub(raw, "prompt_tokens_details").get("cached_tokens"),
            raw.get("cached_tokens"),
            raw.get("prompt_cache_hit_tokens"),
        ):
            cached = cached or (told and _count(told)) or 0
        told = _sub(raw, "completion_tokens_details").get("reasoning_tokens")
        reasoning = (told and _count(told)) or 0
        return cls(
            prompt, completion, min(cached, prompt), min(reasoning, completion), extras=dict(raw)
        )

    def as_dict(self) -> dict[str, Any]:
        """The object the caller sees: the provider's extras, then the billed figures."""
        return {
            **self.extras,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {
                **_sub(self.extras, "prompt_tokens_details"),
                "cached_tokens": self.cached_tokens,
            },
            "completion_tokens_details": {
                **_sub(self.extras, "completion_tokens_details"),
                "reasoning_tokens": self.reasoning_tokens,
            },
        }


def _sub(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _ABSURD:
        return None
    return value
