#!/usr/bin/env bash
# Makes the images that every test cluster has, from programs of the system, in some two seconds:
#   images.sh OUTDIR
# pause.tar (the sandbox of each pod), valkey.tar (the system's Redis under Valkey's name) and busybox.tar.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: images.sh OUTDIR" >&2; exit 2; }
for need in busybox:busybox-static redis-server:redis-server cc:gcc; do
  command -v "${need%%:*}" >/dev/null || { echo "images.sh: missing: apt-get install ${need##*:}" >&2; exit 1; }
done
out=$1
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

# tree NAME: a root folder with what programs expect of any.
tree() {
  root=$work/$1
  mkdir -p "$root"/{bin,etc,tmp}
  chmod 1777 "$root/tmp"
  printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
}

# The busybox that can run anywhere, with a link for each of its programs. Debian 12's crashes on wget -T: timeout 5 wget
# does the same, and its wget knows too little TLS for the API server.
add_busybox() {
  install -m 755 "$(command -v busybox)" "$root/bin/busybox"
  local applet
  for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
}

tree pause
cat >"$work/pause.c" <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int signal) { _exit(0); }
static void reap(int signal) { while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGTERM, end);
  signal(SIGINT, end);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
C
cc -static -Os -s -o "$root/pause" "$work/pause.c"
"$here/image.sh" localhost/leasehold/pause:1 "$root" "$out/pause.tar" --entrypoint '["/pause"]' --user 65534

tree busybox
add_busybox
"$here/image.sh" docker.io/library/busybox:1.36 "$root" "$out/busybox.tar" --cmd '["sh"]'

# Redis takes its shared libraries along. The entrypoint is as in Valkey's own image: options alone mean the server's.
tree valkey
add_busybox
mkdir -p "$root"/usr/local/bin "$root/data"
chmod 777 "$root/data"
for program in server cli; do
  file=$(readlink -f "$(command -v "redis-$program")")
  # Debian's redis-server may be a link to redis-check-rdb's file: the name decides what it is.
  install -m 755 "$file" "$root/usr/local/bin/redis-$program"
  ln -s "redis-$program" "$root/usr/local/bin/valkey-$program"
  ldd "$file" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp --no-clobber --dereference "$library" "$root$library"
  done
done
cat >"$root/usr/local/bin/docker-entrypoint.sh" <<'SH'
#!/bin/sh
set -e
case "$1" in -* | *.conf) set -- valkey-server "$@" ;; esac
if [ "$1" = valkey-server ]; then
  shift
  # As in Valkey's own image, where others may connect unless a setting forbids it.
  case "${1:-}" in
    "" | -*) set -- --protected-mode no "$@" ;;
    *) grep -q protected-mode "$1" || { conf=$1; shift; set -- "$conf" --protected-mode no "$@"; } ;;
  esac
  set -- valkey-server "$@"
fi
exec "$@"
SH
chmod 755 "$root/usr/local/bin/docker-entrypoint.sh"
"$here/image.sh" docker.io/valkey/valkey:8.1-alpine "$root" "$out/valkey.tar" \
  --entrypoint '["docker-entrypoint.sh"]' --cmd '["valkey-server"]' --workdir /data
