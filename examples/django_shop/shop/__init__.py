"""A shop that sells an AI API: its users make their keys, its staff sees to the money."""
