"""A small OpenAI-compatible server for tests, which counts its requests and may misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[list[dict[str, str]]], dict[str, float]]
"""Returns the log-probabilities of the likely next tokens after these messages."""


class JudgeServer:
    """The state of a server; the handler reads it for each request."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.key: str | None = None
        """The key that is accepted; None accepts all."""
        self.statuses: list[int] = []
        """Statuses of the next requests; 200 after them."""
        self.body: str | None = None
        """Body in place of a reply."""
        self.seconds = 0.0
        """Time before each reply."""
        self.served: Counter[str] = Counter()
        """Replies by the text of the question."""
        self.requests: list[dict[str, Any]] = []
        self.attempts = 0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def reply(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, str]:
        """Return status and body of a reply."""
        with self._lock:
            self.attempts += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            status = self.statuses.pop(0) if self.statuses else 200
        time.sleep(self.seconds)
        with self._lock:
            self._at_once -= 1
            if self.key is not None and headers.get("Authorization") != f"Bearer {self.key}":
                return 401, "no"
            if status != 200:
                return status, f"refused {headers.get('Authorization')}"
            self.requests.append(body)
            self.served[body["messages"][0]["content"]] += 1
            if self.body is not None:
                return 200, self.body
            top = [{"token": token, "logprob": logp} for token, logp in self.answer(body["messages"]).items()]
            content = [{"token": "1", "logprob": -0.1, "top_logprobs": top}]
            usage = {"prompt_tokens": 100, "completion_tokens": 1}
            message = {"role": "assistant", "content": "both<|im_end|> are short"}
            return 200, json.dumps(
                {"choices": [{"message": message, "logprobs": {"content": content}}], "usage": usage}
            )


@contextmanager
def serve(answer: Answer) -> Iterator[JudgeServer]:
    """Serve on a free port of this machine inside the context."""
    state = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, text = state.reply(dict(self.headers), body)
            data = text.encode()
            try:
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client did not wait

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
