"""A server on loopback that answers as the Hugging Face hub does, as far as models are pushed and loaded.

It keeps repositories in memory: every commit is all its files. Uploads need a token, downloads of public files none.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopback"


class Hub:
    """The server, as a context; `repos` is {repository: [(commit, {path: bytes}), ...]}."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.get(self)

            def do_GET(self):
                hub.get(self)

            def do_POST(self):
                hub.post(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def do_PUT(self):
                oid = self.path.rpartition("/")[2]
                data = self.rfile.read(int(self.headers["Content-Length"]))
                assert hashlib.sha256(data).hexdigest() == oid
                hub.large[oid] = data
                hub.answer(self, b"")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body, status: int = 200, **headers) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def missing(self, handler, what: str) -> None:
        self.answer(
            handler, {"error": f"{what} not found"}, 404, X_Error_Code=what, X_Error_Message=f"{what} not found"
        )

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        revision = self.tags.get((repo, revision), revision)
        commits = dict(self.repos[repo])
        return (
            self.repos[repo][-1]
            if revision == "main"
            else (revision, commits[revision])
            if revision in commits
            else None
        )

    def get(self, handler) -> None:
        path = handler.path.split("?")[0]
        self.asked.append(f"{handler.command} {path}")
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path)
        match = info or file or tree
        if match is None or match[1] not in self.repos:
            self.missing(handler, "RepoNotFound")
        elif (found := self.files(match[1], match[2] or "main")) is None:
            self.missing(handler, "RevisionNotFound")
        elif info:
            siblings = [{"rfilename": name} for name in found[1]]
            self.answer(handler, {"id": match[1], "sha": found[0], "siblings": siblings, "private": False, "tags": [],
                                  "downloads": 0, "likes": 0})  # fmt: skip
        elif tree:
            inside = [name for name in found[1] if name.startswith(f"{match[3]}/" if match[3] else "")]
            if match[3] and not inside:
                self.missing(handler, "EntryNotFound")
            else:
                entries = [{"type": "file", "path": n, "size": len(found[1][n]), "oid": ""} for n in inside]
                self.answer(handler, entries)
        elif match[3] not in found[1]:
            self.missing(handler, "EntryNotFound")
        else:
            data = found[1][match[3]]
            self.answer(handler, data, X_Repo_Commit=found[0], ETag=f'"{hashlib.sha256(data).hexdigest()}"')

    def post(self, handler, body: bytes) -> None:
        path = handler.path.split("?")[0]
        self.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer(handler, {"errors": [], "warnings": []})
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(handler, {"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/repos/create":
            made = json.loads(body)
            repo = f"{made['organization']}/{made['name']}"
            known = repo in self.repos
            self.repos.setdefault(repo, [("0" * 40, {})])
            return self.answer(handler, {"url": f"{self.address}/{repo}", "id": repo}, 409 if known else 200)
        if match := re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.+", path):
            files = json.loads(body)["files"]
            mode = lambda name: "lfs" if name.endswith(".safetensors") else "regular"
            modes = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]
            return self.answer(handler, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            upload = lambda oid: {"upload": {"href": f"{self.address}/lfs/{oid}"}}
            objects = [{**o, "actions": upload(o["oid"])} for o in json.loads(body)["objects"]]
            return self.answer(handler, {"objects": objects, "transfer": "basic"})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files = dict(self.repos[match[1]][-1][1])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
            commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            self.repos[match[1]].append((commit, files))
            url = f"{self.address}/{match[1]}/commit/{commit}"
            return self.answer(handler, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        return self.missing(handler, "EntryNotFound")
