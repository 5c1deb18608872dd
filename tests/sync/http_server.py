"""A small HTTP server whose answers a test scripts: one that hangs, fails, or cuts off."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, Any], Any]
"""Gets the request and its JSON; returns what to send as JSON, or None if it has answered."""

MODELS = {"data": [{"id": "tiny", "max_model_len": 32}]}


@contextmanager
def http_server(answer: Answer) -> Iterator[str]:
    """Serve; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, content: Any) -> None:
            if (found := answer(self, content)) is not None:
                send(self, 200, json.dumps(found).encode())

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # the client went away, as it should

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None
) -> None:
    """Send an answer; with another `length`, one that is cut off."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def completion(content: Any, ids: list[int] | None = None) -> Any:
    """What vLLM answers to `/v1/completions`: each completion is the same."""
    ids = [5, 6, content["stop_token_ids"][0]] if ids is None else ids
    choice = {
        "finish_reason": "stop" if ids[-1] in content["stop_token_ids"] else "length",
        "token_ids": ids,
        "logprobs": {"token_logprobs": [-0.5 * (place + 1) for place in range(len(ids))]},
    }
    return {"choices": [choice] * content["n"]}
