"""The classes that speak to providers."""
