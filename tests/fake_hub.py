"""A Hub on this machine: the addresses that huggingface_hub's client asks for when a repository is made,
filled, listed and downloaded. It keeps files in memory."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "c0ffee" + "0" * 34


class FakeHub(ThreadingHTTPServer):
    """repositories: {OWNER/NAME: {path: bytes}}. refuse: a status to answer everything with. asked: the
    methods and paths of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.refuse: int | None = None
        self.asked: list[str] = []
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: Any) -> None: ...

    def _send(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.refuse:
            return self._send({"error": "no"}, hub.refuse)
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            hub.repositories.setdefault(name, {})
            hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self._send({"url": f"{hub.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._send({"warnings": [], "errors": []})
        if path == "/api/whoami-v2":
            return self._send({"name": "me", "type": "user", "orgs": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            name, what = found[1], found[2] or ""
            if name not in hub.repositories:
                return self._send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return self._of_repository(hub.repositories[name], name, what, sent)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            file = hub.repositories.get(found[1], {}).get(found[2])
            if file is None:
                return self._send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return self._send(file, ETag=f'"{_digest(file)}"', X_Repo_Commit=COMMIT)
        return self._send({"error": f"unknown {path}"}, 404)

    def _of_repository(self, files: dict[str, bytes], name: str, what: str, sent: bytes) -> None:
        if what.startswith("preupload"):
            each = [file["path"] for file in json.loads(sent)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in each]
            return self._send({"files": modes})
        if what.startswith("commit/"):
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            here = f"{self.server.address}/{name}/commit/{COMMIT}"
            return self._send({"commitUrl": here, "commitOid": COMMIT, "success": True})
        if what.startswith("tree/"):
            return self._send(
                [
                    {"type": "file", "path": path, "size": len(held), "oid": _digest(held)}
                    for path, held in files.items()
                ]
            )
        siblings = [{"rfilename": path} for path in files]
        return self._send(
            {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
        )

    do_GET = do_POST = do_HEAD = _answer


def _digest(file: bytes) -> str:
    return hashlib.sha1(file).hexdigest()
