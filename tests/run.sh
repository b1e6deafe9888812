#!/usr/bin/env bash
# Sets up what the tests need and runs them all: formatting, lints, documentation, tests, benchmarks (compiled only). GPU
# kernels run on the emulator, and on the GPU that MEDMERGE_REQUIRE_DEVICE=cuda asks for.
# Needs Rust, a C++ compiler, and Python with pip: fetches crates, libnvrtc where there is none, and nvdisasm. Exported networks
# are run by ONNX Runtime where python3 has it.
# `cargo-nextest` is used where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} RUSTDOCFLAGS="-D warnings"
# Line numbers in backtraces are worth less here than the minutes that debug information costs.
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0

step() { printf '\n== %s\n' "$*"; }

for component in rustfmt clippy; do
  if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
    step "installing $component"
    rustup component add "$component"
  fi
done

step "cargo fmt --check"
cargo fmt --all --check

step "cargo clippy --all-targets"
cargo clippy --locked --all-targets -- -D warnings
cargo clippy --locked --all-targets --features emulator -- -D warnings

step "the library alone"
cargo clippy --locked --no-default-features --lib -- -D warnings

step "cargo doc"
cargo doc --locked --no-deps --document-private-items --features emulator

# The GPU kernels are compiled in the tests; that takes NVIDIA's run-time compiler, and no GPU.
if [ -z "${MEDMERGE_NVRTC:-}" ] && cargo run --locked --quiet --features emulator -- devices --json | grep '"searched"' >/dev/null; then
  folder=$PWD/target/nvrtc
  if [ ! -e "$folder/nvidia/cu13/lib/libnvrtc.so.13" ]; then
    step "installing libnvrtc into target/nvrtc"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" nvidia-cuda-nvrtc==13.0.88
  fi
  export MEDMERGE_NVRTC=$folder/nvidia/cu13/lib
fi

if cargo nextest --version >/dev/null 2>&1; then
  step "cargo nextest run"
  cargo nextest run --locked --no-fail-fast --features emulator
else
  step "cargo test"
  cargo test --locked --no-fail-fast --lib --bins --tests --features emulator
fi

step "cargo test --doc"
cargo test --locked --doc --features emulator

step "tests of benches/peers"
# Those that need PyTorch are skipped where there is none.
python3 -m unittest discover --start-directory benches/peers

step "benches/peers, small"
# Every work of ours once: it fails on a panic, a wrong number or a missing row, never on a time.
cargo build --locked --quiet --manifest-path benches/peers/Cargo.toml --no-default-features --features ours --target-dir target/peers
python3 benches/peers/run.py --smoke --binary target/peers/debug/medmerge-peers --peers ours,machine >target/peers/smoke.md

# What the compiler made of them. The disassembler needs no GPU either.
step "tests/sass.py"
disassembler=${MEDMERGE_NVDISASM:-$PWD/target/nvdisasm/nvidia/cu13/bin/nvdisasm}
if [ ! -e "$disassembler" ]; then
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target target/nvdisasm nvidia-cuda-nvdisasm==13.2.86
fi
look_at_instructions() {
  rm -rf target/cubins
  mkdir -p target/cubins
  for arch in sm_80 sm_89 sm_90a sm_100; do
    XDG_CACHE_HOME=$1 cargo run --locked --quiet --features emulator -- kernels --arch "$arch" --cubin "target/cubins/$arch" --json \
      > "target/cubins/$arch.json"
  done
  python3 tests/sass.py "$disassembler" target/cubins benches/results/instructions.csv
}
# What the tests compiled for these architectures is taken from their cache. The compiler does not always choose the same: what differs
# twice is a change.
look_at_instructions "$PWD/target/tmp/cache" || { [ $? = 2 ] && look_at_instructions "$PWD/target/tmp/again"; }

# What is prepared for minutes on a GPU: with a stand-in for the program, then with the program on the emulator, made small.
step "benches/on_gpu"
python3 -m unittest discover --start-directory benches/on_gpu
cargo build --locked --quiet --features emulator
rm -rf target/on_gpu
mkdir -p target/on_gpu/packed
cp "${CARGO_TARGET_DIR:-target}/debug/medmerge" target/on_gpu/packed/
git rev-parse HEAD > target/on_gpu/packed/commit 2>/dev/null || echo unknown > target/on_gpu/packed/commit
call() {
  env DEVICE=emulator:sm_90a NETWORK=resnet8 IMAGE_SIZE=16 FIRST_IMAGE_SIZE=16 BATCHES=4 PRECISIONS=bf16 ROUNDS=1 ARCH=sm_90a \
    OPS="convert constraint" TESTS= KERNELS= FILTER=layer3.0.conv1 STAGES=step FORMS=eager PYTHON=/bin/false XDG_CACHE_HOME="$PWD/target/tmp/cache" \
    bash benches/on_gpu/call.sh "$1" "target/on_gpu/out$1" target/on_gpu/packed > "target/on_gpu/log$1" 2>&1
}
call 1
# There is no PyTorch in this, so that the second call has no table, and says so.
call 2 && exit 1
grep -q '^no table: no pair of reports' target/on_gpu/out2/stages.txt
call 3
python3 benches/on_gpu/results.py target/on_gpu/out{1,2,3} > target/on_gpu/results.md
grep -c 'done, ' target/on_gpu/results.md

# Another program's word on every family of networks.
step "tests/onnx_check.py"
if python3 -c 'import numpy, onnx, onnxruntime' 2>/dev/null; then
  cargo build --locked --quiet --features emulator
  python3 tests/onnx_check.py "${CARGO_TARGET_DIR:-target}/debug/medmerge"
else
  echo "not run: python3 has no numpy, onnx and onnxruntime"
fi

# What a stranger downloads: everything that is needed to compile it, under the version of Rust that it states.
step "cargo package"
stated=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
rm -rf target/package
cargo package --locked --quiet --no-verify --allow-dirty
tar -xzf target/package/medmerge-*.crate -C target/package
of_package=(--quiet --locked --lib --bins --manifest-path target/package/medmerge-*/Cargo.toml)
case $(rustc --version) in
  "rustc $stated."*) CARGO_TARGET_DIR=target cargo check "${of_package[@]}" ;;
  *) rustup toolchain install --profile minimal "$stated" && CARGO_TARGET_DIR=target/stated cargo "+$stated" check "${of_package[@]}" ;;
esac

step "cargo deny"
if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "not run: cargo-deny is not installed"; fi

# On the CPU and the emulator, the tests have done the same.
for device in ${MEDMERGE_REQUIRE_DEVICE:-}; do
  step "medmerge selftest --device $device"
  cargo run --locked --quiet --features emulator -- selftest --device "$device"
done
