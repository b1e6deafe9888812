#!/usr/bin/env bash
# Sets up what the tests need and runs them all: formatting, lints, documentation, tests, benchmarks (compiled only).
# Needs Rust and a C compiler; fetches crates and nothing else. `cargo-nextest` is used where it is installed.
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

step "cargo doc"
cargo doc --locked --no-deps --document-private-items

if cargo nextest --version >/dev/null 2>&1; then
  step "cargo nextest run"
  cargo nextest run --locked --no-fail-fast
else
  step "cargo test"
  cargo test --locked --no-fail-fast --lib --bins --tests
fi

step "cargo test --doc"
cargo test --locked --doc
