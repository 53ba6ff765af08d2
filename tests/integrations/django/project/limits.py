"""Parts that the project's settings name."""

from oneai_middleware.rate_limiters.base import RateLimiter


class Shared(RateLimiter):
    """Stands for one that several processes share; none is asked here."""
