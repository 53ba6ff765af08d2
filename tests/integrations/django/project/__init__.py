"""A Django project with everything switched on that could come in the API's way."""
