"""What travels on the wire: the requests callers send, the answers they get."""
