"""A server on this machine with those addresses of the Hugging Face hub that its library calls to upload a model."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_secret0token"
CHUNK = re.compile(rb"([0-9a-fA-F]+)\r\n")


@dataclass
class Repository:
    """What is in a repository."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: int = 0

    @property
    def sha(self):
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds and was asked.

    Attributes:
        repositories: By name.
        requests: Method and path of each request.
        faults: A part of a path to a status that is answered instead.
        large: Endings of what goes as a large file, apart from the commit.
        during: Called before a commit.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    large: tuple[str, ...] = (".safetensors", ".png")
    stored: dict[str, bytes] = field(default_factory=dict)
    during: object = None
    url: str = ""

    def answer(self, method, path, body, token):
        """Return status, headers and JSON of an answer."""
        self.requests.append(f"{method} {path}")
        for part, status in self.faults.items():
            if part in f"{method} {path}":
                return status, {"X-Error-Message": f"a fault, {token}"}, {"error": "a fault"}
        if path.startswith("/lfs/") and method == "PUT":
            self.stored[path.removeprefix("/lfs/")] = body
            return 200, {}, {}
        if token != f"Bearer {TOKEN}":
            return 401, {}, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|preupload|commit|branch|tree)/(.+))?", path)
        repository = found and self.repositories.get(found[1])
        if not repository:
            return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        return self.in_repository(found[1], repository, method, found[2], (found[3] or "main").split("?")[0], body)

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {}, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories[name] = Repository(private=private)
        return 200, {}, {"url": f"{self.url}/{name}"}

    def in_repository(self, name, repository, method, what, branch, body):
        if what == "branch" and method == "POST":
            repository.branches[branch] = dict(repository.branches["main"])
            return 200, {}, {}
        if branch not in repository.branches:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Revision not found"}
        files = repository.branches[branch]
        if what in (None, "revision"):
            about = {"id": name, "sha": repository.sha, "private": repository.private}
            return 200, {}, about | {"siblings": [{"rfilename": each} for each in files]}
        if what == "tree":
            entry = {"type": "file", "oid": "0" * 40}
            return 200, {}, [entry | {"path": each, "size": len(data)} for each, data in files.items()]
        if what == "preupload":
            mode = {True: "lfs", False: "regular"}
            asked = [each["path"] for each in json.loads(body)["files"]]
            about = [{"path": each, "uploadMode": mode[each.endswith(self.large)]} for each in asked]
            return 200, {}, {"files": [each | {"shouldIgnore": False} for each in about]}
        return self.commit(name, repository, files, body)

    def batch(self, asked):
        actions = {oid: {"upload": {"href": f"{self.url}/lfs/{oid}"}} for oid in (o["oid"] for o in asked["objects"])}
        return 200, {}, {"transfer": "basic", "objects": [o | {"actions": actions[o["oid"]]} for o in asked["objects"]]}

    def commit(self, name, repository, files, body):
        if self.during is not None:
            self.during(repository)
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", repository.sha) != repository.sha:
                return 412, {}, {"error": "A commit has happened since. Please refresh and try again."}
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits += 1
        return 200, {}, {"success": True, "commitOid": repository.sha, "commitUrl": f"{self.url}/{name}/commit/1"}


@contextmanager
def serving():
    """Serve an empty `Hub` while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do(self):
            given = self.headers.get("Authorization")
            status, headers, content = hub.answer(self.command, self.path.split("?")[0], self.body(), given)
            text = json.dumps(content).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, str(value))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text if self.command != "HEAD" else b"")

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
