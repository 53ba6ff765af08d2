"""One file a path of the API."""
