"""Two parts for oneai_middleware: a backend that knows answers, and keys in a text file."""
