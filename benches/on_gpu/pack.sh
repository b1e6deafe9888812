#!/usr/bin/env bash
# Collects into a folder what a machine with a GPU needs that has neither Rust nor a network: pack.sh [FOLDER=.gpu]
#
# The release program, the tests of devices and goldens, benches/on_gpu and benches/peers, and, where libnvrtc is at hand
# (MEDMERGE_NVRTC), all kernels compiled for sm_90a. Prints the size, and fails beyond 64 MiB. Run in the repository's root.
set -euo pipefail
cd "$(dirname "$0")/../.."
to=$(realpath -m "${1:-.gpu}")
rm -rf "$to"
mkdir -p "$to/tests" "$to/benches"
cargo build --release --locked
cp target/release/medmerge "$to/"
cargo test --release --locked --no-run --test device --test golden --message-format=json | python3 -c '
import json, shutil, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
        shutil.copy(message["executable"], sys.argv[1] + "/tests/" + message["target"]["name"])
' "$to"
strip "$to/medmerge" "$to"/tests/*
cp -r benches/on_gpu benches/peers "$to/benches/"
rm -rf "$to"/benches/peers/{target,venv} "$to"/benches/*/__pycache__
if [ -n "${MEDMERGE_NVRTC:-}" ]; then
  XDG_CACHE_HOME=$to/cache "$to/medmerge" kernels --arch sm_90a > "$to/kernels.txt"
fi
git rev-parse HEAD > "$to/commit"
size=$(du -sm "$to" | cut -f1)
echo "$to: $size MiB"
[ "$size" -le 64 ]
