"""A minimal W&B server: stores runs by name and history lines by number, discards files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


@dataclass
class StoredRun:
    """A run on the server: the variables it was created with, history by line number, exit code."""

    variables: dict[str, Any]
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    exit_code: int | None = None
    starts: int = 1


class Server(ThreadingHTTPServer):
    """Serves on 127.0.0.1. Requests with another API key than ``key`` get 401, as from W&B."""

    daemon_threads = True

    def __init__(self, key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key, self.runs, self.lock = key, dict[str, StoredRun](), Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The result of one GraphQL operation."""
        match operation:
            case "RunResumeStatus":
                return {"model": self._project(variables) | {"bucket": self._resumed(variables["name"])}}
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": self._upserted(variables), "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return {
            "serverInfo": None,
            "viewer": {"id": "1", "entity": "me", "flags": "{}", "teams": {"edges": []}},
        }

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Store lines of a run's history at their numbers, and its exit code."""
        run = self.runs[name]
        history = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        run.history |= {
            history["offset"] + number: json.loads(line) for number, line in enumerate(history["content"])
        }
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    def _project(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}

    def _resumed(self, name: str) -> dict[str, Any] | None:
        if (run := self.runs.get(name)) is None:
            return None
        run.starts, run.exit_code = run.starts + 1, None
        tail = json.dumps([json.dumps(run.history[max(run.history)])] if run.history else [])
        counts = {
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
        }
        return {
            "id": name,
            "name": name,
            "displayName": run.variables["displayName"],
            "summaryMetrics": "{}",
            "config": run.variables["config"],
            "tags": run.variables["tags"],
            "notes": run.variables["notes"],
            "wandbConfig": '{"t": {}}',
            **counts,
        }

    def _upserted(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(variables["name"], StoredRun(variables))
        run.variables = {
            **run.variables,
            **{key: value for key, value in variables.items() if value is not None},
        }
        shown = {key: run.variables.get(key) for key in ("name", "displayName", "description", "config")}
        return {
            "id": variables["name"],
            **shown,
            "sweepName": None,
            "historyLineCount": len(run.history),
            "project": self._project(variables),
        }


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        with self.server.lock:
            self._reply(*self._response(content))

    do_GET = do_PUT = do_POST

    def _response(self, content: bytes) -> tuple[int, dict[str, Any]]:
        if self.path.endswith("/graphql"):
            import base64

            credentials = base64.b64encode(f"api:{self.server.key}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {credentials}":
                return 401, {"errors": [{"message": "user is not logged in"}]}
            request = json.loads(content)
            data = self.server.answer(request.get("operationName", ""), request.get("variables") or {})
            return 200, {"data": data}
        if self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(content))
        return 200, {}

    def _reply(self, code: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(key: str) -> Iterator[Server]:
    server = Server(key)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
