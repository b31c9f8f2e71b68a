#!/bin/sh
# Builds Dewar and serves examples/hello (or the folders given) on this machine. Ctrl-C ends it.
#
# The first time takes about 15 minutes on two cores (the wasm toolchain and guests 5, Dewar itself 10), later ones seconds.
# Root is needed only where a C compiler is missing and has to be installed.
set -eu
cd "$(dirname "$0")/.."
. .ci/packages.sh

need_cargo
need cc gcc
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
install_missing

say 'building the guests: buildpacks and examples (about 5 minutes the first time)'
sh guest-sdk/build.sh

say 'building Dewar (about 10 minutes the first time)'
cargo build --release --quiet

if [ $# = 0 ]; then set -- examples/hello; fi
say "dewar dev $*"
exec target/release/dewar dev "$@"
