"""The answer on its way out."""
