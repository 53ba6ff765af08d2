"""Balances, holds and the record of every call."""
