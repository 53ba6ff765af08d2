"""Where API keys and their accounts live."""
