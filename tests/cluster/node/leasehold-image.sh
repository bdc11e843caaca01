#!/usr/bin/env bash
# Makes the image of Leasehold that Dockerfile makes, without Docker, and prints how large it is:
#   leasehold-image.sh OUT.tar [NAME:TAG]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { echo "usage: leasehold-image.sh OUT.tar [NAME:TAG]" >&2; exit 2; }
out=$1
# shellcheck source=../packages.sh
source "$here/../packages.sh"
cd "$here/../../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=${2:-ghcr.io/leasehold/leasehold:$version}
target=$(uname -m)-unknown-linux-musl
command -v musl-gcc >/dev/null || install_missing musl-tools
rustup target list --installed | grep -qx "$target" || rustup target add "$target" >&2
echo "Building a static leasehold (6 minutes on two cores, the first time)." >&2
cargo build --quiet --release --locked --bin leasehold --target "$target" >&2
folder=${CARGO_TARGET_DIR:-target}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
install -D -m 755 "$folder/$target/release/leasehold" "$root/leasehold"
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
"$here/image.sh" "$name" "$root" "$out" --entrypoint '["/leasehold"]' --user 65532:65532
echo "$name: $(stat -c %s "$out") bytes, $(gzip -c "$out" | wc -c) compressed" >&2
