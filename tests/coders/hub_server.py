"""A hub on this machine: repositories in memory behind the HTTP requests that huggingface_hub makes for one model."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

SHA = "a" * 40  # the one commit that every repository has


class _Hub(BaseHTTPRequestHandler):
    repositories: dict[str, dict[str, bytes]]

    def _answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, code: int = 200) -> None:
        self._answer(json.dumps(value).encode(), code, Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            said = json.loads(body)
            name = "/".join(filter(None, (said.get("organization"), said["name"])))
            self.repositories.setdefault(name, {})
            return self._json({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        _, _, _, owner, model, action, *_ = self.path.split("/")
        if action == "preupload":
            return self._json(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                }
            )
        for line in body.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.repositories[f"{owner}/{model}"][item["value"]["path"]] = content
        self._json(
            {
                "commitOid": SHA,
                "commitUrl": f"http://{self.headers['Host']}/{owner}/{model}/commit/{SHA}",
                "success": True,
            }
        )

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.repositories:
                return self._answer(b"", 404, X_Error_Code="RepoNotFound")
            names = [{"rfilename": file} for file in self.repositories[name]]
            if "tree" in parts:
                items = self.repositories[name].items()
                return self._json(
                    [{"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for f, b in items]
                )
            return self._json({"id": name, "modelId": name, "sha": SHA, "siblings": names, "private": False})
        content = self.repositories.get("/".join(parts[:2]), {}).get(
            unquote("/".join(parts[4:]))
        )  # after resolve/<rev>
        if content is None:
            return self._answer(b"", 404, X_Error_Code="EntryNotFound")
        self._answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def serve():
    """Address and repositories (name -> file -> bytes) of a hub that lives as long as the block."""
    handler = type("Hub", (_Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.repositories
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
