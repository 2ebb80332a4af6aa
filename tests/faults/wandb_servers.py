"""Servers on this machine in place of W&B's: one that works, and some that do not."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Working(BaseHTTPRequestHandler):
    """As much of W&B as a run needs: it begins, streams its rows and sends its files."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        asked = json.loads(body) if self.path == "/graphql" else {}
        self.answer(200, json.dumps(self._answers(asked)).encode())

    do_GET = do_PUT = do_POST

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answers(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, given = asked.get("query", ""), asked.get("variables") or {}
        if "upsertBucket" in query:
            project = {"id": "cA==", "name": "p", "entity": {"id": "ZQ==", "name": "somebody"}}
            bucket = {"id": "aWQ=", "name": given.get("name") or "n", "displayName": "d", "config": "{}"}
            bucket |= {"historyLineCount": 0, "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            up = f"http://{self.headers['host']}/files"
            files = [{"name": name, "uploadUrl": up} for name in given["files"]]
            return {"data": {"createRunFiles": {"runID": "aWQ=", "uploadHeaders": [], "files": files}}}
        return {"data": {"model": None}} if query else {}


class Broken(Working):
    """Answers everything with the status 500."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(500, b"no")

    do_GET = do_PUT = do_POST


@contextmanager
def serving(kind: type[Working]) -> Iterator[ThreadingHTTPServer]:
    """A server in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def base_url(kind: str) -> Iterator[str]:
    """Address of a server that is ``closed`` (nobody listens), ``silent`` (never answers) or ``broken``."""
    if kind == "broken":
        with serving(Broken) as server:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        return
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == "silent":
            taken.listen(50)  # the system accepts, and nobody reads
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
