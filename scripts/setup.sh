#!/bin/sh
# Sets up what the Makefile's targets need and is missing: FUSE's Debian packages, and a virtual environment with the project and its tools.
# Says what it does; does nothing, and needs no network, when all is there.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        say "needs root for: $*"
        say "ask an administrator to run this, then try again: apt-get update && apt-get install" \
            "fuse3 $(first_known libfuse3-3 libfuse3-4) $(first_known libfuse2 libfuse2t64) python3-venv"
        exit 1
    fi
}

updated=
apt_install() {
    command -v apt-get >/dev/null 2>&1 || { say "this is no Debian or Ubuntu; please install: $*"; exit 1; }
    if [ -z "$updated" ]; then
        say "apt-get update"
        as_root apt-get update -qq
        updated=yes
    fi
    say "apt-get install $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The first of the names that the distribution knows: libraries are renamed when their interface changes.
first_known() {
    for name in "$@"; do
        if apt-cache show "$name" >/dev/null 2>&1; then
            printf '%s' "$name"
            return
        fi
    done
    printf '%s' "$1"
}

# The linker's list of libraries: /sbin isn't on every user's PATH.
has_library() { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q "$1"; }

command -v fusermount3 >/dev/null 2>&1 || apt_install fuse3
if ! has_library 'libfuse3\.so'; then
    [ -n "$updated" ] || { as_root apt-get update -qq && updated=yes; }
    apt_install "$(first_known libfuse3-3 libfuse3-4)"
fi
if ! has_library 'libfuse\.so\.2'; then
    [ -n "$updated" ] || { as_root apt-get update -qq && updated=yes; }
    apt_install "$(first_known libfuse2 libfuse2t64)"
fi

python=
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    apt_install python3 python3-venv
    python=python3
fi
"$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv

wanted=$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open("pyproject.toml", "rb").read() + sys.version.encode()).hexdigest())')
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/setup-stamp 2>/dev/null)" != "$wanted" ]; then
    if [ ! -x .venv/bin/python ]; then
        say "making a virtual environment in .venv"
        "$python" -m venv .venv
    fi
    say "installing optfs with its tools into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
    printf '%s' "$wanted" > .venv/setup-stamp
fi

# So that each start doesn't compile anew where the environment keeps Python from writing bytecode: 0.07 s.
.venv/bin/python -m compileall -q optfs || true
