"""``oneai demo``: the whole API on this machine, without any provider."""

from __future__ import annotations

import argparse
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from ..catalog import presets
from ..errors import ConfigurationError
from ..gateway import Gateway
from ..middleware import OneAIMiddleware
from ..secret import new_secret

HOST = "127.0.0.1"
BALANCE = "10.00"


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="the API on this machine, every provider played by an echo",
        description="Serve the API on 127.0.0.1 with fresh keys for every tier. The five "
        "providers are played by an echo, so no provider key is needed.",
    )
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    keys = {name: new_secret() for name in ("free", "pro", "enterprise", "empty")}
    app = OneAIMiddleware(_host, demo_gateway(keys))
    try:
        server = make_server(
            HOST, arguments.port, app, threaded=True, request_handler=_QuietHandler
        )
    except (OSError, SystemExit) as error:
        raise ConfigurationError(
            f"port {arguments.port} cannot be served; choose another with --port"
        ) from error
    print(_welcome(f"http://{HOST}:{server.port}/v1", keys), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        # The server would raise, or take the port that is left over by 65536.
        raise argparse.ArgumentTypeError(f"{port} is not between 0 and 65535")
    return port


def demo_gateway(keys: dict[str, str]) -> Gateway:
    """A gateway with a key for each tier and one whose balance is empty."""
    accounts = {
        name: {"tier": name, "balance": BALANCE, "keys": [secret]}
        for name, secret in keys.items()
        if name != "empty"
    }
    accounts["empty"] = {"tier": "free", "balance": "0", "keys": [keys["empty"]]}
    return Gateway(
        mount="",
        providers={name: {"backend": "echo"} for name in presets()},
        accounts=accounts,
    )


def _host(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """What stands for the application that mounts us."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"This page is the host application's. The API lives under /v1.\n"]


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Leave the terminal to what the demo has to say."""


def _welcome(base_url: str, keys: dict[str, str]) -> str:
    return f"""\
OneAI demo: nine models of five providers, all played by an echo.

  base URL     {base_url}
  free         {keys["free"]}
  pro          {keys["pro"]}
  enterprise   {keys["enterprise"]}
  no money     {keys["empty"]}

With curl:

  curl {base_url}/chat/completions \\
    -H "Authorization: Bearer {keys["pro"]}" \\
    -d '{{"model": "deepseek-v4-pro", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

With the OpenAI SDK (pip install openai):

  from openai import OpenAI

  client = OpenAI(api_key="{keys["pro"]}", base_url="{base_url}")
  stream = client.chat.completions.create(
      model="kimi", messages=[{{"role": "user", "content": "Say this again"}}], stream=True
  )
  for chunk in stream:
      print(chunk.choices[0].delta.content or "", end="")

Ctrl-C ends the demo. Balances are ${BALANCE} each and live in memory.
"""
