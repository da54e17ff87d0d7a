"""Which servers a store may talk to, and through what: endpoints, proxies and certificates. The same for every carrier.

Rules:

- Plain http only to this computer, where no proxy is used either.
- A proxy is the one that the environment names for https (HTTPS_PROXY, NO_PROXY and their kin), unless the server is this computer.
- Trusted is the bundle that AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE names and nothing else; without one the system's, else certifi's.

Nothing is sent here, and no lock is needed.
"""

import os
import ssl
import urllib.request
from urllib.parse import urlsplit

import urllib3
import urllib3.exceptions
import urllib3.util

from optfs.errors import ConfigError
from optfs.units import is_loopback, parse_endpoint


def server(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL; ValueError where its port is no number."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def safe_server(base: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an endpoint's URL.

    Raises:
        ConfigError: it is none by the rules for settings (`units.parse_endpoint`). The message doesn't repeat it.

    """
    try:
        return server(parse_endpoint(base))
    except ValueError as error:
        raise ConfigError(f"an endpoint's URL {error}") from None


def find_proxy(scheme: str, host: str) -> urllib3.util.Url | None:
    """Return the proxy to a server, its login in `auth` as the environment has it (percent-encoded); None: none is used.

    Raises:
        ConfigError: the environment names one that can't be used.

    """
    if scheme == "http":
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if not proxy or is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    try:
        parsed = urllib3.util.parse_url(proxy if "://" in proxy else "http://" + proxy)
    except urllib3.exceptions.HTTPError:
        parsed = urllib3.util.Url()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError("the proxy's URL in HTTPS_PROXY can't be used; http://HOST:PORT is expected")
    return parsed


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts what the module's docstring says.

    Raises:
        ConfigError: the bundle can't be read.

    """
    bundle = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE")
    try:
        if bundle:
            folder = os.path.isdir(bundle)  # noqa: PTH112 - what it is decides how ssl wants it, nothing is opened
            return ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
        context = ssl.create_default_context()
    except (OSError, ssl.SSLError):
        raise ConfigError(f"the CA bundle {bundle} can't be read; check AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE") from None
    if not context.cert_store_stats()["x509_ca"]:  # a system without certificates, or with a folder of them, read later
        import certifi  # noqa: PLC0415 - costs time, needed on few systems only

        context.load_verify_locations(certifi.where())
    return context
