"""Google Cloud Storage's JSON API as the export's users may see it: listing objects, and getting them or their metadata.

Facts from Google's reference (Objects: list, Objects: get). A project to bill (`userProject`) stands in the request log's query. `fields`
is honoured as far as a listing's own members and `items(…)` go: who doesn't ask for `nextPageToken` doesn't get one.

Where the services aren't `strict`, no token is asked for, as other programs to mount a bucket can't be given one for this server, and
objects can be got by the XML API's addresses, too, as gcsfuse does.
"""

import json
import re
import time
from urllib.parse import quote, unquote

from optfs.demo.api_server import Account
from optfs.demo.issuer import Issuer
from optfs.demo.objects import Bucket, Version
from optfs.demo.ranges import Unsatisfiable, resolve
from optfs.demo.s3_server import Paging
from optfs.demo.traffic import Request, Response, Service

BASES = ("/storage/v1/b/", "/download/storage/v1/b/")


class GcsHandler:
    """Answers from one bucket."""

    service: Service = "gcs"

    def __init__(self, bucket: Bucket, account: Account, issuer: Issuer, paging: Paging, *, strict: bool = True) -> None:
        self._bucket = bucket
        self._account = account
        self._issuer = issuer
        self._paging = paging
        self._strict = strict

    def classify(self, request: Request) -> None:
        """Tell listings and gets of objects from all else. A key's slashes are encoded in the path."""
        if self._is_xml(request):
            request.kind, request.key = "get", unquote(request.raw_path.split("/", 2)[2], errors="surrogateescape")
            return
        base = next((base for base in BASES if request.raw_path.startswith(base)), None)
        if request.method != "GET" or base is None:
            return
        bucket, _, rest = request.raw_path.removeprefix(base).partition("/")
        if bucket != self._account.gcs_bucket:
            return
        if rest == "o":
            request.kind, request.key = "list", request.query.get("prefix", "")
        elif rest.startswith("o/"):
            request.kind, request.key = "get", unquote(rest[2:], errors="surrogateescape")

    def answer(self, request: Request) -> Response:
        """Return the answer to a request."""
        if self._strict and not self._issuer.token_is_good(request.headers.get("authorization", "").removeprefix("Bearer ")):
            refusal = error(401, "Invalid Credentials", "authError")
            refusal.headers["WWW-Authenticate"] = 'Bearer realm="https://accounts.google.com/"'
            return refusal
        if request.kind == "list":
            return self._list(request)
        if request.kind == "get":
            return self._get(request)
        return error(403, "The caller does not have storage permission on this resource.", "forbidden")

    def _list(self, request: Request) -> Response:
        query = request.query
        try:
            page = self._bucket.list_page(
                request.key,
                delimiter=query.get("delimiter", ""),
                continuation=query.get("pageToken") or None,  # some clients send an empty one first
                limit=max(1, min(int(query.get("maxResults", "1000")), 1000, self._paging.size)),
            )
        except ValueError:
            return error(400, "Invalid argument.", "invalid")
        body: dict[str, object] = {"kind": "storage#objects"}
        if page.continuation is not None:
            body["nextPageToken"] = page.continuation
        if page.prefixes:
            body["prefixes"] = page.prefixes
        if page.objects:
            body["items"] = [self._metadata(version) for version in page.objects]
        return _json(200, _select(body, query.get("fields")))

    def _get(self, request: Request) -> Response:
        version = self._bucket.get(request.key)
        if version is None or request.query.get("generation", str(version.generation)) != str(version.generation):
            return error(404, f"No such object: {self._account.gcs_bucket}/{request.key}", "notFound")
        if request.query.get("ifGenerationMatch", str(version.generation)) != str(version.generation):
            return error(412, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")
        if request.query.get("alt") != "media" and not self._is_xml(request):
            return _json(200, self._metadata(version))
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": _etag(version),
            "X-Goog-Generation": str(version.generation),
            "X-Goog-Metageneration": "1",
            "X-Goog-Stored-Content-Encoding": "identity",
            "X-Goog-Stored-Content-Length": str(version.size),
        }
        try:
            part = resolve(request.range, version.size)
        except Unsatisfiable:
            response = error(416, "Request range not satisfiable", "requestedRangeNotSatisfiable")
            response.headers["Content-Range"] = f"bytes */{version.size}"
            return response
        if part is None:
            return Response(200, headers, version.part(0, version.size))
        start, length = part
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{version.size}"
        return Response(206, headers, version.part(start, length))

    def _is_xml(self, request: Request) -> bool:
        return not self._strict and request.method == "GET" and request.raw_path.startswith(f"/{self._account.gcs_bucket}/")

    def _metadata(self, version: Version) -> dict[str, object]:
        bucket = self._account.gcs_bucket
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(version.mtime)) + f".{round(version.mtime * 1000) % 1000:03d}Z"
        name = quote(version.key, safe="", errors="surrogateescape")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{version.key}/{version.generation}",
            "selfLink": f"https://www.googleapis.com/storage/v1/b/{bucket}/o/{name}",
            "name": version.key,
            "bucket": bucket,
            "generation": str(version.generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(version.size),
            "etag": _etag(version),
            "timeCreated": moment,
            "updated": moment,
        }


def error(status: int, message: str, reason: str) -> Response:
    """Return an error of the JSON API."""
    detail = {"message": message, "domain": "global", "reason": reason}
    return _json(status, {"error": {"code": status, "message": message, "errors": [detail]}})


def _etag(version: Version) -> str:
    return f"C{version.etag[:12]}="


def _json(status: int, body: object) -> Response:
    headers = {"Content-Type": "application/json; charset=UTF-8", "X-GUploader-UploadID": "demo"}
    return Response(status, headers, memoryview(json.dumps(body).encode()))


def _select(body: dict[str, object], fields: str | None) -> dict[str, object]:
    """Return what a listing's `fields` parameter leaves: members named, `items` whole, `items/name` or `items(name,…)`."""
    if not fields or fields == "*":
        return body
    wanted: dict[str, set[str]] = {}
    for name, group, single in re.findall(r"(\w+)(?:\(([^)]*)\)|/(\w+))?", fields):
        wanted.setdefault(name, set()).update(part for part in (*group.split(","), single) if part)
    chosen = {name: value for name, value in body.items() if name in wanted}
    items = chosen.get("items")
    if isinstance(items, list) and wanted["items"]:
        chosen["items"] = [{name: value for name, value in item.items() if name in wanted["items"]} for item in items]
    return chosen
