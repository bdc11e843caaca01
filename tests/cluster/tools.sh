#!/usr/bin/env bash
# Makes sure that the tools that building and testing need are there: installs those of the system where it may
# (root on Debian and Ubuntu), else names the line that does.
set -euo pipefail

# shellcheck source=packages.sh
source "$(dirname "$0")/packages.sh"

# Program and Debian package.
tools="redis-server:redis-server cmake:cmake cc:gcc ld:binutils setpriv:util-linux"
missing=()
for tool in $tools; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
# A compiler without the C library's headers is of no use.
[ -e /usr/include/stdio.h ] || ! command -v apt-get >/dev/null || missing+=(libc6-dev)
# For tests/cluster/redis6.sh, and for the fences of docs/fencing.
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

install_missing "${missing[@]}"

command -v cargo >/dev/null || fail "Rust is missing: https://rustup.rs"
[ -x "${KUBEBUILDER_ASSETS:-}/kube-controller-manager" ] || command -v go >/dev/null || fail "Go 1.26 or newer is missing: https://go.dev/dl"
version=$(redis-server --version | sed -n 's/.*v=\([0-9]*\).*/\1/p')
[ "${version:-0}" -ge 7 ] || fail "redis-server 7 or newer is needed; this is $(redis-server --version). See https://redis.io/docs/latest/operate/oss_and_stack/install"
