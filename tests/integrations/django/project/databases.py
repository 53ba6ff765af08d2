"""Where the project's tables are: a file, or a URL such as ``postgresql://user@host/name``."""

from urllib.parse import unquote, urlsplit

BACKENDS = "django.db.backends."
SERVERS = {
    "postgresql": {"ENGINE": f"{BACKENDS}postgresql"},
    "mariadb": {
        "ENGINE": f"{BACKENDS}mysql",
        # To read the machine's certificates, for each connection, would take most of its time.
        "OPTIONS": {"ssl_disabled": True, "charset": "utf8mb4"},
    },
}


def database(place):
    """The entry of ``DATABASES`` for ``place``."""
    url = urlsplit(place)
    if url.scheme not in SERVERS:
        return {"ENGINE": f"{BACKENDS}sqlite3", "NAME": place}
    if url.scheme == "mariadb":
        import pymysql

        pymysql.install_as_MySQLdb()
    return {
        **SERVERS[url.scheme],
        "HOST": url.hostname,
        "PORT": str(url.port or ""),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "NAME": url.path.removeprefix("/"),
    }
