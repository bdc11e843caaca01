#!/usr/bin/env bash
# Makes sure that the tools that building and testing need are there: installs those of the system where it may
# (root on Debian and Ubuntu), else names the line that does.
set -euo pipefail

fail() {
  echo "$*" >&2
  exit 1
}

# Program and Debian package.
tools="redis-server:redis-server cmake:cmake cc:gcc ld:binutils setpriv:util-linux"
missing=()
for tool in $tools; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
# A compiler without the C library's headers is of no use.
[ -e /usr/include/stdio.h ] || ! command -v apt-get >/dev/null || missing+=(libc6-dev)
# For tests/cluster/redis6.sh.
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

if [ ${#missing[@]} -gt 0 ]; then
  line="apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    fail "Missing: ${missing[*]} (the names of the Debian packages). Please install them."
  elif [ "$(id -u)" -ne 0 ]; then
    fail "Missing: ${missing[*]}. Please run, as root: $line"
  fi
  echo "Installing ${missing[*]}." >&2
  export DEBIAN_FRONTEND=noninteractive
  (eval "$line") >&2 || fail "Installing failed. The line was: $line"
fi

command -v cargo >/dev/null || fail "Rust is missing: https://rustup.rs"
[ -x "${KUBEBUILDER_ASSETS:-}/kube-controller-manager" ] || command -v go >/dev/null || fail "Go 1.26 or newer is missing: https://go.dev/dl"
version=$(redis-server --version | sed -n 's/.*v=\([0-9]*\).*/\1/p')
[ "${version:-0}" -ge 7 ] || fail "redis-server 7 or newer is needed; this is $(redis-server --version). See https://redis.io/docs/latest/operate/oss_and_stack/install"
