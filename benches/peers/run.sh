#!/bin/sh
# Builds the peers and runs them all: ./run.sh [options of run.py]
#
# PEERS_VENV  a virtual environment with torch and torchvision (absolute path); default: venv/ here, created when missing
# PEERS_JOBS  parallel jobs of the build; default: all cores
set -eu
cd "$(dirname "$0")"

venv=${PEERS_VENV:-venv}
python=$venv/bin/python
if ! [ -x "$python" ]; then
    if [ -n "${PEERS_VENV:-}" ]; then
        echo "error: $python does not exist" >&2
        exit 1
    fi
    python3 -m venv venv
    venv/bin/pip install --quiet torch==2.13.0 torchvision==0.28.0 numpy
fi

jobs=${PEERS_JOBS:-$(nproc)}
# The others are tuned to this processor; our own code is built as its users build it.
CARGO_PROFILE_RELEASE_LTO=false cargo build --release --jobs "$jobs" --no-default-features --features ours
RUSTFLAGS="-C target-cpu=native" cargo build --release --jobs "$jobs" --target-dir target/native \
    --no-default-features --features candle,burn

python3 run.py --python "$python" "$@"
