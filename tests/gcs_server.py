"""A stand-in for Google Cloud Storage in one process: the part of its JSON API over HTTP that gcsfs and TensorStore use.

Buckets are dictionaries in memory. Generations, their preconditions, CRC-32C and MD5, ranges, pages of a listing, and simple,
multipart and resumable uploads are as the service's documentation has them; rights, versions and soft deletion are left out.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import os
import pathlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator

PAGE = 50  # entries of a listing, so that a small test meets a second page


class _Refused(Exception):
    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code, self.message = code, message


class GcsServer(http.server.ThreadingHTTPServer):
    """`buckets[bucket][name]` are the bytes; `downloads` the names that were read, in order.

    What a test may set: `read_only` refuses every change with 403, `forbidden` every call whose path has this in it; the next `busy`
    calls get a 503; `on_write(name)` is called before each change of an object, in the server's thread, with the server's lock held.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *buckets: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, bytes]] = {name: {} for name in buckets}
        self.generations: dict[tuple[str, str], int] = {}
        self.uploads: dict[str, dict] = {}
        self.numbers = itertools.count(1)
        self.lock = threading.RLock()
        self.read_only, self.forbidden, self.busy = False, None, 0
        self.on_write = lambda name: None
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """What makes gcsfs and TensorStore come here, without credentials, in a process started with it."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
            "FSSPEC_GCS_TOKEN": "anon",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks over gRPC what kind of bucket it is
        }

    def handle_error(self, request, client_address) -> None:
        """A client that was killed, or that has read enough, hangs up: no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def add(self, folder: pathlib.Path, bucket: str, prefix: str) -> None:
        """Puts a folder's files into a bucket."""
        with self.lock:
            for path in folder.rglob("*"):
                if path.is_file():
                    self.buckets[bucket][f"{prefix}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def save(self, bucket: str, prefix: str, folder: pathlib.Path) -> None:
        """Writes the files of a bucket into a folder."""
        for name in self.names(bucket, prefix + "/"):
            path = folder / name.removeprefix(prefix + "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.buckets[bucket][name])

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))


@contextlib.contextmanager
def serve(*buckets: str) -> Iterator[GcsServer]:
    with GcsServer(*buckets) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    server: GcsServer

    def log_message(self, *args) -> None:
        if os.environ.get("GCS_SERVER_LOG"):
            super().log_message(*args)

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        self.url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(self.url.query))
        self.body = self._read_body()
        try:
            with self.server.lock:
                self._route()
        except _Refused as error:
            self._send_json({"error": {"code": error.code, "message": error.message}}, error.code)

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        blocks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _route(self) -> None:
        if self.server.busy > 0:
            self.server.busy -= 1
            raise _Refused(503, "busy")
        forbidden = self.server.forbidden is not None and self.server.forbidden in urllib.parse.unquote(self.url.path)
        if forbidden or (self.server.read_only and self.command != "GET"):
            raise _Refused(403, "the caller does not have the right to do this")
        match = re.fullmatch(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?(/?)", self.url.path)
        if not match:
            raise _Refused(501, f"no such call here: {self.command} {self.url.path}")
        kind, self.bucket, name, _ = match.groups()
        self.objects = self.server.buckets.get(self.bucket)
        if self.objects is None:
            raise _Refused(404, "The specified bucket does not exist.")
        if kind == "upload":
            return self._upload()
        if name is None:
            return self._list() if self.url.path.rstrip("/").endswith("/o") else self._send_json({"name": self.bucket})
        if self.command == "POST" and (copy := re.fullmatch(r"(.+)/(copyTo|rewriteTo)/b/([^/]+)/o/(.+)", name)):
            return self._copy(*copy.groups())
        if self.command == "POST" and name.endswith("/compose"):
            return self._compose(urllib.parse.unquote(name.removesuffix("/compose")))
        name = urllib.parse.unquote(name)
        if self.command == "DELETE":
            self._content(name)
            self._check_generation(name)
            self.server.on_write(name)
            del self.objects[name], self.server.generations[self.bucket, name]
            return self._send(204)
        content = self._content(name)
        if self.query.get("alt") == "media":
            return self._download(name, content)
        self._send_json(self._resource(name))

    # --- Objects

    def _content(self, name: str) -> bytes:
        if name not in self.objects:
            raise _Refused(404, f"No such object: {self.bucket}/{name}")
        return self.objects[name]

    def _resource(self, name: str) -> dict:
        import google_crc32c

        content = self.objects[name]
        generation = self.server.generations.setdefault((self.bucket, name), next(self.server.numbers))
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "id": f"{self.bucket}/{name}/{generation}",
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "storageClass": "STANDARD",
            "contentType": "application/octet-stream",
        }

    def _check_generation(self, name: str) -> None:
        there = self.server.generations.setdefault((self.bucket, name), next(self.server.numbers)) if name in self.objects else 0
        if "ifGenerationMatch" in self.query and int(self.query["ifGenerationMatch"]) != there:
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in self.query and int(self.query["ifGenerationNotMatch"]) == there:
            raise _Refused(304 if self.command == "GET" else 412, "the generation is the one not wanted")

    def _put(self, name: str, content: bytes) -> None:
        self._check_generation(name)
        self.server.on_write(name)
        self.objects[name] = content
        self.server.generations[self.bucket, name] = next(self.server.numbers)
        self._send_json(self._resource(name))

    def _download(self, name: str, content: bytes) -> None:
        self._check_generation(name)
        self.server.downloads.append(name)
        resource = self._resource(name)
        headers = {
            "x-goog-generation": resource["generation"],
            "x-goog-hash": f"crc32c={resource['crc32c']},md5={resource['md5Hash']}",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._send(200, content, headers)
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= len(content):
            raise _Refused(416, "the range is not satisfiable")
        self._send(206, content[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        entries: dict[str, bool] = {}  # name or prefix -> whether it is a prefix
        for name in sorted(self.objects):
            inside = self.query.get("startOffset", "") <= name < self.query.get("endOffset", "\U0010ffff")
            if name.startswith(prefix) and inside:
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                entries[prefix + head + delimiter if found else name] = bool(found)
        names = [name for name in entries if name > self.query.get("pageToken", "")]
        page = names[: min(PAGE, int(self.query.get("maxResults", PAGE)))]
        answer: dict = {"kind": "storage#objects", "items": [self._resource(name) for name in page if not entries[name]]}
        answer["prefixes"] = [name for name in page if entries[name]]
        if len(page) < len(names):
            answer["nextPageToken"] = page[-1]
        self._send_json(answer)

    def _copy(self, name: str, how: str, bucket: str, new_name: str) -> None:
        content, new_name = self._content(urllib.parse.unquote(name)), urllib.parse.unquote(new_name)
        target = self.server.buckets.get(bucket)
        if target is None:
            raise _Refused(404, "The specified bucket does not exist.")
        self.server.on_write(new_name)
        target[new_name] = content
        self.server.generations[bucket, new_name] = next(self.server.numbers)
        self.bucket, self.objects = bucket, target
        resource, size = self._resource(new_name), str(len(content))
        if how == "copyTo":
            return self._send_json(resource)
        answer = {"kind": "storage#rewriteResponse", "done": True, "objectSize": size, "totalBytesRewritten": size}
        self._send_json({**answer, "resource": resource})

    def _compose(self, name: str) -> None:
        self._put(name, b"".join(self._content(source["name"]) for source in json.loads(self.body)["sourceObjects"]))

    # --- Uploads

    def _upload(self) -> None:
        kind = self.query.get("uploadType")
        if kind == "media":
            return self._put(self.query["name"], self.body)
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"]).group(1).encode()
            described, media = (part.split(b"\n\n" if b"\r\n\r\n" not in part else b"\r\n\r\n", 1)[1] for part in self._parts(boundary))
            return self._put(self.query.get("name") or json.loads(described)["name"], media)
        if self.command == "POST" and "upload_id" not in self.query:
            key = str(next(self.server.numbers))
            name = self.query.get("name") or json.loads(self.body)["name"]
            self.server.uploads[key] = {"name": name, "data": b"", "query": dict(self.query)}
            return self._send(200, b"", {"Location": f"{self.server.url}{self.url.path}?{self.url.query}&upload_id={key}"})
        upload = self.server.uploads.get(self.query.get("upload_id", ""))
        if upload is None:
            raise _Refused(404, "no such upload")
        if self.command == "DELETE":
            del self.server.uploads[self.query["upload_id"]]
            return self._send(499)
        first, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes 0-0/*")).groups()
        if first is not None:
            upload["data"] = upload["data"][: int(first)] + self.body
        if "Content-Range" in self.headers and (total == "*" or len(upload["data"]) < int(total)):
            held = {"Range": f"bytes=0-{len(upload['data']) - 1}"} if upload["data"] else {}
            return self._send(308, b"", held)
        del self.server.uploads[self.query["upload_id"]]
        self.query = upload["query"]
        self._put(upload["name"], upload["data"])

    def _parts(self, boundary: bytes) -> list[bytes]:
        parts = self.body.split(b"--" + boundary)[1:-1]
        return [part.removeprefix(b"\r\n").removeprefix(b"\n").removesuffix(b"\n").removesuffix(b"\r") for part in parts]

    # --- Answers

    def _send_json(self, value: dict, code: int = 200) -> None:
        self._send(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(body)
