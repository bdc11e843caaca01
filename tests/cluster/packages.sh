# Sourced: how scripts say that they fail, and get packages of the system.

fail() {
  echo "$*" >&2
  exit 1
}

# install_missing PACKAGE...: installs Debian packages where it may (root on Debian and Ubuntu), else names the line that
# does, and fails. Without packages it does nothing.
install_missing() {
  [ $# -gt 0 ] || return 0
  local line="apt-get update && apt-get install --yes --no-install-recommends $*"
  if ! command -v apt-get >/dev/null; then
    fail "Missing: $* (the names of the Debian packages). Please install them."
  elif [ "$(id -u)" -ne 0 ]; then
    fail "Missing: $*. Please run, as root: $line"
  fi
  echo "Installing $*." >&2
  export DEBIAN_FRONTEND=noninteractive
  (eval "$line") >&2 || fail "Installing failed. The line was: $line"
}
