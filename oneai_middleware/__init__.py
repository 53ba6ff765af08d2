"""An OpenAI-compatible AI API inside your own WSGI application."""

from .errors import ConfigurationError, OneAIError
from .gateway import Gateway
from .middleware import OneAIMiddleware
from .settings import Settings

__version__ = "0.1.0"

__all__ = ["ConfigurationError", "Gateway", "OneAIError", "OneAIMiddleware", "Settings"]
