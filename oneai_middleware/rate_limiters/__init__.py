"""How many requests, tokens and calls at once."""
