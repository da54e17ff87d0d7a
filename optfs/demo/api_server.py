"""The Authentication API, as Optimizely's reference describes `export/credentials` (AWS) and `export/credentials/gcp`."""

import json
import re
import threading
import uuid
from dataclasses import dataclass, field

from optfs.demo.issuer import Issuer
from optfs.demo.traffic import Request, Response, Service

S3_BUCKET = "optimizely-events-data"
REASONS = {400: "BadRequest", 401: "Unauthorized", 404: "NotFound", 405: "MethodNotAllowed"}


@dataclass(frozen=True, slots=True)
class Account:
    """The account that the services hold.

    Attributes:
        s3: whether it has data on S3.
        gcs: whether it has data on GCS.

    """

    id: str
    s3: bool
    gcs: bool

    @property
    def prefix(self) -> str:
        """The account's prefix in both buckets."""
        return f"v1/account_id={self.id}/"

    @property
    def gcs_bucket(self) -> str:
        """The name of its bucket on GCS."""
        return f"optimizely-e3-{self.id}"


@dataclass(slots=True)
class TokenState:
    """The personal access token, which can be revoked. `good` is a single flag: reading and setting it needs no lock."""

    token: str = field(repr=False)
    good: threading.Event = field(default_factory=threading.Event)

    def accepts(self, authorization: str) -> bool:
        """Return whether an Authorization header carries the token while it isn't revoked."""
        return self.good.is_set() and authorization == f"Bearer {self.token}"


class ApiHandler:
    """Answers with credentials of `issuer`."""

    service: Service = "api"

    def __init__(self, account: Account, issuer: Issuer, token: TokenState) -> None:
        self._account = account
        self._issuer = issuer
        self._token = token

    def classify(self, request: Request) -> None:
        """Tell requests for credentials from others."""
        if request.path.startswith("/v2/export/credentials"):
            request.kind = "credentials"
            request.key = "gcp" if request.path.endswith("/gcp") else "aws"

    def answer(self, request: Request) -> Response:
        """Return credentials, or an error as the API words it."""
        if request.method != "GET":
            return failure(405, "Method not allowed.")
        if not self._token.accepts(request.headers.get("authorization", "")):
            return failure(401, "Invalid personal token.")
        if request.path == "/v2/export/credentials" and self._account.s3:
            return self._aws(request.query.get("duration", "1h"))
        if request.path == "/v2/export/credentials/gcp" and self._account.gcs:
            return _json(200, {"token": self._issuer.issue_token(), "uri": f"gs://{self._account.gcs_bucket}"})
        return failure(404, "Not found.")

    def _aws(self, duration: str) -> Response:
        matched = re.fullmatch(r"([0-9]{1,4})([hm])", duration)
        seconds = int(matched[1]) * (3600 if matched[2] == "h" else 60) if matched else 0
        if not 15 * 60 <= seconds <= 3600:
            return failure(400, "The duration must lie between 15m and 1h.")
        keys = self._issuer.issue_keys(seconds)
        credentials = {
            "accessKeyId": keys.access_key,
            "secretAccessKey": keys.secret_key,
            "sessionToken": keys.session_token,
            "expiration": int(keys.expires_at * 1000),
        }
        return _json(200, {"credentials": credentials, "s3Path": f"s3://{S3_BUCKET}/{self._account.prefix.rstrip('/')}"})


def failure(status: int, message: str) -> Response:
    """Return an error of the API."""
    body = {"code": REASONS[status], "message": message, "messages": [message], "uuid": str(uuid.uuid4())}
    return _json(status, body)


def _json(status: int, body: object) -> Response:
    return Response(status, {"Content-Type": "application/json"}, memoryview(json.dumps(body).encode()))
