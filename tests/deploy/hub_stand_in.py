"""A stand-in for the Hugging Face hub's HTTP API, enough to push a folder to a repository and fetch it again."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class Handler(BaseHTTPRequestHandler):
    """Repositories live in ``server.repos``: id -> {path: bytes}; every request is noted in ``server.seen``."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(f"POST {self.path}")
        repo = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization") or "user", asked["name"].split("/")[-1])))
            self.server.repos.setdefault(name, {})
            self._say({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif self.path.startswith("/api/validate-yaml"):
            self._say({"errors": [], "warnings": []})
        elif repo and repo[2] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self._say({"files": files})
        elif repo:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.repos[repo[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.address}/{repo[1]}/commit/{COMMIT}"
            self._say({"success": True, "commitOid": COMMIT, "commitUrl": url, "pullRequestUrl": None})
        else:
            self.send_error(404)

    def do_GET(self):
        self.server.seen.append(f"{self.command} {self.path}")
        file = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        info = re.match(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/", self.path)
        if info and info[1] in self.server.repos and "/tree/" not in self.path:
            siblings = [{"rfilename": path} for path in self.server.repos[info[1]]]
            self._say({"id": info[1], "sha": COMMIT, "siblings": siblings})
        elif info and info[1] in self.server.repos:
            entries = self.server.repos[info[1]].items()
            oid = hashlib.sha1
            self._say([{"type": "file", "path": p, "size": len(c), "oid": oid(c).hexdigest()} for p, c in entries])
        elif file and file[2] in self.server.repos.get(file[1], {}):
            self._say(self.server.repos[file[1]][file[2]])
        else:
            self.send_response(404)
            self.send_header(
                "X-Error-Code", "EntryNotFound" if file and file[1] in self.server.repos else "RepoNotFound"
            )
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def _say(self, answer):
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def start() -> ThreadingHTTPServer:
    """A server on a free port of this machine; ``shutdown`` and ``server_close`` end it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address, server.repos, server.seen = f"http://127.0.0.1:{server.server_port}", {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
