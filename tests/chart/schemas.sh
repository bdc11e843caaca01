#!/usr/bin/env bash
# Writes strict JSON schemas, for kubeconform, of Kubernetes' own kinds and of ours, into a cache outside the tree, and
# prints the path of the folder. In it, GROUP/KIND-VERSION.json has all that the kind needs (GROUP of the core: v1).
# They are read from the OpenAPI documents of the API server that the tests build, with crds/ applied.
# The cache key is the content of what goes in, so a second run costs nothing.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=../cluster/packages.sh
source ../cluster/packages.sh

key=$(cat schemas.sh ../cluster/{go.mod,go.sum,main.go} ../../crds/*.yaml | sha256sum | cut -c1-16)
cache=${LEASEHOLD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/leasehold}/schemas-$key
if [ ! -e "$cache" ]; then
  cluster=$(../cluster/build.sh)
  mkdir -p "$(dirname "$cache")"
  work=$(mktemp -d "$cache.XXXXXX")
  parts=()
  finish() {
    { kill -KILL "${parts[@]}" && wait; } 2>/dev/null || true
    rm -rf "$work"
  }
  trap finish EXIT
  mkdir "$work/schemas" "$work/documents"

  # Free ports: etcd's two, and the API server's.
  read -r etcd peer api < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*[each.getsockname()[1] for each in sockets])')
  echo "$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'),admin,admin,system:masters" >"$work/tokens"
  "$cluster" etcd --data-dir "$work/etcd" --unsafe-no-fsync --log-level error \
    --listen-client-urls "http://127.0.0.1:$etcd" --advertise-client-urls "http://127.0.0.1:$etcd" \
    --listen-peer-urls "http://127.0.0.1:$peer" >"$work/log" 2>&1 &
  parts+=($!)
  # Its own key, made at its start, signs the tokens of service accounts, too.
  "$cluster" kube-apiserver --etcd-servers "http://127.0.0.1:$etcd" --bind-address 127.0.0.1 --secure-port "$api" \
    --cert-dir "$work/keys" --token-auth-file "$work/tokens" --authorization-mode RBAC \
    --service-cluster-ip-range 10.0.0.0/24 --endpoint-reconciler-type none \
    --service-account-issuer https://leasehold.test --service-account-key-file "$work/keys/apiserver.key" \
    --service-account-signing-key-file "$work/keys/apiserver.key" >>"$work/log" 2>&1 &
  parts+=($!)
  kubectl() {
    KUBECONFIG=/dev/null "$cluster" kubectl --server "https://127.0.0.1:$api" --insecure-skip-tls-verify \
      --token "$(cut -d, -f1 "$work/tokens")" --cache-dir "$work/cache" "$@"
  }
  # within SECONDS WHAT COMMAND...
  within() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
      [ $SECONDS -lt "$limit" ] || { tail -n 20 "$work/log" >&2 && fail "In vain: $what"; }
      sleep 0.2
    done
  }
  within 60 'the API server is ready' kubectl get --raw /readyz
  kubectl apply --server-side -f ../../crds >"$work/applied"
  kinds_are_published() {
    local kind text
    text=$(kubectl get --raw /openapi/v3/apis/leasehold.dev/v1alpha1)
    while read -r kind; do
      [[ $text == *"\"kind\":\"$kind\""* ]] || return 1
    done < <(sed -n 's/^    kind: //p' ../../crds/*.yaml)
  }
  within 30 'our kinds are published' kinds_are_published
  kubectl get --raw /openapi/v3 | grep -oE '"apis?/([^/"]+/)?v[^/"]+"' | tr -d '"' | while read -r path; do
    kubectl get --raw "/openapi/v3/$path" >"$work/documents/${path//\//_}.json"
  done
  python3 - "$work/schemas" "$work"/documents/*.json <<'PYTHON'
import json, os, sys

out, documents = sys.argv[1], sys.argv[2:]


def strict(schema):
    """An object whose fields are known has no others; some fields take a number or a string."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # Names of fields are none of the schema's own words: a field may be called "properties".
    schema = {
        key: {name: strict(field) for name, field in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    return schema


def names(schema):
    """Those that a schema refers to."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].rsplit("/", 1)[1]
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from names(item)


def write(group, version, kind, schema):
    folder = os.path.join(out, group or version)
    os.makedirs(folder, exist_ok=True)
    text = json.dumps(schema).replace('"#/components/schemas/', '"#/definitions/')
    with open(os.path.join(folder, f"{kind.lower()}-{version}.json"), "w") as file:
        file.write(text)


for path in documents:
    with open(path) as file:
        schemas = json.load(file).get("components", {}).get("schemas", {})
    schemas = {name: strict(schema) for name, schema in schemas.items()}
    for name, schema in schemas.items():
        # More than one: what all groups share, such as DeleteOptions.
        kinds = schema.get("x-kubernetes-group-version-kind", [])
        if len(kinds) != 1:
            continue
        needed, new = {}, {name}
        while new:
            needed.update((each, schemas[each]) for each in new)
            new = {other for each in new for other in names(schemas[each])} - needed.keys()
        whole = {"$ref": f"#/definitions/{name}", "definitions": needed}
        write(kinds[0]["group"], kinds[0]["version"], kinds[0]["kind"], whole)
PYTHON
  mv "$work/schemas" "$cache"
  echo "Wrote the schemas of Kubernetes' kinds and ours into $cache." >&2
fi
echo "$cache"
