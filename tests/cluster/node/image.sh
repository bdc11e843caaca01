#!/usr/bin/env bash
# Makes a container image of one layer from a folder, without Docker: a docker-archive that load.sh and others import.
#   image.sh NAME:TAG ROOTFS_DIR OUT.tar [--entrypoint JSON] [--cmd JSON] [--user UID] [--workdir DIR]
# The same folder gives the same bytes: names are sorted, times are zero, and all belongs to root.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: image.sh NAME:TAG ROOTFS_DIR OUT.tar [--entrypoint JSON] [--cmd JSON] [--user UID] [--workdir DIR]" >&2; exit 2; }
exec python3 - "$@" <<'PYTHON'
import argparse, hashlib, io, json, os, platform, sys, tarfile

args = argparse.ArgumentParser(prog="image.sh")
args.add_argument("name")
args.add_argument("rootfs")
args.add_argument("out")
args.add_argument("--entrypoint", type=json.loads)
args.add_argument("--cmd", type=json.loads)
args.add_argument("--user")
args.add_argument("--workdir")
args = args.parse_args()
if not os.path.isdir(args.rootfs):
    sys.exit(f"image.sh: {args.rootfs} is no folder")


def plain(info):
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def add_bytes(tar, name, data):
    info = plain(tarfile.TarInfo(name))
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
    # tar.add sorts what it finds in a folder.
    for name in sorted(os.listdir(args.rootfs)):
        tar.add(os.path.join(args.rootfs, name), name, filter=plain)
layer = layer.getvalue()
digest = hashlib.sha256(layer).hexdigest()

run = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
for key, value in [("Entrypoint", args.entrypoint), ("Cmd", args.cmd), ("User", args.user), ("WorkingDir", args.workdir)]:
    if value is not None:
        run[key] = value
machine = platform.machine()
config = json.dumps({
    "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
    "os": "linux",
    "config": run,
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    "history": [{"created_by": "image.sh"}],
}, sort_keys=True).encode()
manifest = [{
    "Config": hashlib.sha256(config).hexdigest() + ".json",
    "RepoTags": [args.name],
    "Layers": [f"{digest}/layer.tar"],
}]
temporary = f"{args.out}.{os.getpid()}"
with tarfile.open(temporary, mode="w", format=tarfile.PAX_FORMAT) as tar:
    add_bytes(tar, "manifest.json", json.dumps(manifest).encode())
    add_bytes(tar, manifest[0]["Config"], config)
    add_bytes(tar, manifest[0]["Layers"][0], layer)
os.replace(temporary, args.out)
PYTHON
