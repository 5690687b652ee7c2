"""A model hub on the loopback interface: as much of the Hugging Face hub's HTTP interface as a download needs.

One private model with several commits, each a directory. Keeps what was asked of it.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

MODEL = "acme/tiny"
TOKEN = "hf_of_the_test"


@dataclass
class FakeHub:
    """The hub's content and log."""

    commits: Mapping[str, Path]
    """Directory of each revision name."""
    endpoint: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request that carried the token."""
    num_refused: int = 0

    def commit_of(self, revision: str) -> str:
        """The commit that a revision names, or that it is."""
        commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in self.commits}
        return commits.get(revision, revision if revision in commits.values() else "")

    def directory_of(self, commit: str) -> Path:
        """The files of a commit."""
        return next(path for name, path in self.commits.items() if self.commit_of(name) == commit)

    def downloaded(self) -> set[str]:
        """Names of the files whose content was fetched."""
        return {
            path.rpartition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        }


@contextlib.contextmanager
def running_hub(commits: Mapping[str, Path]) -> Iterator[FakeHub]:
    """A hub on a free port."""
    hub = FakeHub(commits)
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: _Handler(hub, *arguments))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, *arguments) -> None:
        self._hub = hub
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._hub.num_refused += 1
            self._refuse(401, "RepoNotFound")
            return
        self._hub.requests.append((self.command, path))
        if path.startswith(f"/api/models/{MODEL}/revision/"):
            self._answer_revision(path.rpartition("/")[2], with_body=with_body)
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            self._answer_tree(path.rpartition("/")[2], with_body=with_body)
        elif path.startswith(f"/{MODEL}/resolve/"):
            commit, _, name = path.removeprefix(f"/{MODEL}/resolve/").partition("/")
            self._answer_file(commit, name, with_body=with_body)
        else:
            self._refuse(404, "RepoNotFound")

    def _answer_revision(self, revision: str, *, with_body: bool) -> None:
        commit = self._hub.commit_of(revision)
        if not commit:
            self._refuse(404, "RevisionNotFound")
            return
        files = sorted(path.name for path in self._hub.directory_of(commit).iterdir())
        body = {
            "id": MODEL,
            "sha": commit,
            "private": True,
            "siblings": [{"rfilename": name} for name in files],
        }
        self._send(json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body=with_body)

    def _answer_tree(self, revision: str, *, with_body: bool) -> None:
        directory = self._hub.directory_of(self._hub.commit_of(revision))
        body = [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _etag(path)}
            for path in sorted(directory.iterdir())
        ]
        self._send(json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body=with_body)

    def _answer_file(self, revision: str, name: str, *, with_body: bool) -> None:
        commit = self._hub.commit_of(revision)
        path = self._hub.directory_of(commit) / name if commit else Path("/nonexistent")
        if not path.is_file():
            self._refuse(404, "EntryNotFound" if commit else "RevisionNotFound")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        self._send(path.read_bytes(), headers, with_body=with_body)

    def _send(self, body: bytes, headers: Mapping[str, str], *, with_body: bool) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
