"""How long a database is waited for: whoever calls hears within two seconds that it is down."""

PATIENCE = 0.7
"""Seconds that a server's lock, or a free connection, is waited for."""
BUSY = 1.2
"""Seconds that others may write to a SQLite file meanwhile: one alone can at a time."""
ABANDONED = 10
"""Seconds after which a server undoes a transaction whose client says nothing more."""
SILENCE = 0.85
"""Seconds without a word in which a server counts as gone. A call may find its old
connection dead and a new one as well, and is to know it within two seconds."""
