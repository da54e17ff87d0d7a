"""What `optfs doctor` checks, in the order in which a mount needs it. Each check is independent of the others where it can be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

from optfs.bridge import bindings, mounting
from optfs.cache.disk import SMALLEST
from optfs.config import Config
from optfs.errors import ConfigError, NoExport, OptfsError, RequestRefused
from optfs.service import providers
from optfs.service.composition import check_cache_folder
from optfs.values import Provider


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        ok: None: nothing wrong, and nothing to use either (an account without data on one provider).
        text: what was found; where it isn't ok, also what to do.

    """

    name: str
    ok: bool | None
    text: str


def run(config: Config) -> Iterator[Finding]:
    """Check everything; yields findings as they come."""
    yield from _bindings(config)
    if config.allow_other:
        yield _guarded("allow-other", lambda: mounting.check_allow_other(), "other users may be let in")  # noqa: PLW0108 - its argument has a default
    yield from _services(config)
    yield _cache(config)


def _bindings(config: Config) -> Iterator[Finding]:
    found = bindings.available()
    try:
        chosen = bindings.choose(config.binding)
    except OptfsError as error:
        yield Finding("fuse", False, error.message)
        return
    yield Finding("fuse", True, f"{chosen} with {found[chosen].library}")
    for name, availability in found.items():
        if name != chosen and not availability.usable:
            yield Finding("fuse", None, f"{name} isn't usable ({availability.problem}); not needed")


def _services(config: Config) -> Iterator[Finding]:
    asked: tuple[Provider, ...] = get_args(Provider) if config.provider == "auto" else (config.provider,)
    try:
        token = providers.has_token(config)
        openers = providers.openers(config)
    except OptfsError as error:
        yield Finding("token", False, error.message)
        return
    yield Finding("token", True, "found" if token else f"none: the provider's own credentials are used, for account {config.account}")
    accounts: set[str] = set()
    usable = 0
    failures: list[Finding] = []
    for provider in asked:
        name = providers.NAMES[provider]
        try:
            source = openers[provider]()
        except (NoExport, ConfigError, RequestRefused) as error:
            finding = Finding(f"{provider} credentials", False if len(asked) == 1 else None, f"{name}: {error.message}")
            failures.append(finding)
            continue
        except OptfsError as error:
            failures.append(Finding(f"{provider} credentials", False, f"{name}: {_with_detail(error)}"))
            continue
        yield Finding(f"{provider} credentials", True, f"account {source.root.account}, bucket {source.root.bucket}")
        try:
            connected = providers.reach(config, provider, source)
        except OptfsError as error:
            failures.append(Finding(f"{provider} listing", False, f"{name}: {_with_detail(error)}"))
            continue
        connected.close()
        usable += 1
        if connected.has_data:
            accounts.add(source.root.account)
        yield Finding(
            f"{provider} listing", True, "the account's folder has data" if connected.has_data else "the account's folder is empty"
        )
    yield from failures
    if len(accounts) > 1:
        yield Finding("providers", False, "they lead to different accounts, and a mount shows one; choose by --account or --provider")
    if not usable and all(finding.ok is None for finding in failures):
        yield Finding("providers", False, "no provider can be used; check the token, or the provider's credentials and --account")


def _cache(config: Config) -> Finding:
    try:
        problem = check_cache_folder(config)
    except OptfsError as error:
        return Finding("cache", False, _with_detail(error))
    if config.cache_size < SMALLEST:
        return Finding("cache", None, f"off: {problem}")
    return Finding("cache", not problem, problem or f"{config.cache_dir} can be used")


def _guarded(name: str, check: Callable[[], None], fine: str) -> Finding:
    try:
        check()
    except OptfsError as error:
        return Finding(name, False, _with_detail(error))
    return Finding(name, True, fine)


def _with_detail(error: OptfsError) -> str:
    return f"{error.message} ({error.detail})" if error.detail else error.message
