#!/bin/sh
# Passes every test: formatting, lints, unit, property, simulation, golden, world and process tests.
#
# The first time takes about 30 minutes on two cores (the wasm toolchain and guests 5, compiling 15, tests the rest), later ones
# a few minutes. Root is needed only where a Debian package is missing and has to be installed. Arguments go to `cargo test`.
set -eu
cd "$(dirname "$0")/.."
. .ci/packages.sh

need_cargo
need_checks
need cc gcc
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
PATH="$PATH:/usr/sbin"
need nats-server nats-server
need openssl openssl
install_missing
# Debian starts a server of its own upon installation; the tests start theirs.
export PATH NATS_SERVER="$(command -v nats-server)"

say 'building the guests: buildpacks, examples and misbehaving ones (about 5 minutes the first time)'
sh guest-sdk/build.sh

say 'checks and unit tests of the guests (about 2 minutes the first time)'
(
    cd guest-sdk
    export CARGO_TARGET_DIR=../target/guest-host
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
    cargo test --locked --workspace --quiet
)

say 'formatting'
cargo fmt --all --check

say 'lints (about 5 minutes the first time)'
cargo clippy --workspace --all-targets --quiet -- -D warnings

# Property tests try the same cases each time, so that what fails is the change's doing; who asks for more of them gets others as well.
[ -n "${PROPTEST_CASES-}" ] || export PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED-1}"
say 'tests (about 20 minutes the first time, most of it compiling)'
cargo test --workspace --quiet --no-fail-fast "$@"

say 'all passed'
