"""W&B on the loopback: it answers what ``wandb`` asks and keeps what it is sent, history by run."""

import gzip
import http.server
import json
import re
import threading
from collections import defaultdict
from contextlib import contextmanager


class Received:
    """Everything that was sent: raw bodies, and each run's history as W&B would store it (line by line, by offset)."""

    def __init__(self):
        self.bodies: list[bytes] = []
        self.history: dict[str, dict[int, dict]] = defaultdict(dict)
        self.runs: list[dict] = []

    def rows(self, run):
        return [row for _, row in sorted(self.history[run].items())]


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self._body()
        if "/file_stream" in self.path:
            run = self.path.split("/")[-2]
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            for number, line in enumerate(history["content"], start=history["offset"]):
                self.server.received.history[run][number] = json.loads(line)
            self._reply({"exitcode": None, "limits": {}})
            return
        asked = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"]).group(1)
        self._reply({"data": self._answer(operation, asked.get("variables") or {})})

    def do_PUT(self):
        self._body()
        self._reply({})

    def do_GET(self):
        self._reply({})

    def _body(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.bodies.append(body)
        return body

    def _answer(self, operation, variables):
        received, project = self.server.received, {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
        name = variables.get("name") or ""
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "email": "", "flags": "{}"}}
        if operation == "RunResumeStatus":
            rows = received.rows(name)
            if not rows:
                return {"model": {**project, "bucket": None}}
            tail = {"historyTail": json.dumps([json.dumps(rows[-1])]), "eventsTail": "[]", "summaryMetrics": "{}"}
            counts = {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0}
            about = {"id": "b", "name": name, "config": "{}", "tags": [], "wandbConfig": '{"t": {}}'}
            return {"model": {**project, "bucket": {**about, **counts, **tail}}}
        if operation == "UpsertBucket":
            received.runs.append(variables)
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": not received.history[name]}}
        if operation == "CreateRunFiles":
            place = f"http://127.0.0.1:{self.server.server_address[1]}/upload/"
            files = [{"name": file, "uploadUrl": place + file} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        return {"serverInfo": {"features": []}}

    def _reply(self, answer):
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def wandb_server():
    """Yield the address and what is received."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.received = Received()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.received
    finally:
        server.shutdown()
        server.server_close()
