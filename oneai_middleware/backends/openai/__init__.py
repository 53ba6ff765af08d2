"""Any provider that speaks OpenAI's chat protocol over HTTP."""

from .backend import OpenAIBackend

__all__ = ["OpenAIBackend"]
