#!/bin/sh
# Builds the guests: guest-sdk/build.sh [--only buildpacks|examples|tests]…
#
#   buildpacks/*    to target/guests/buildpacks/<folder>.wasm, which the agent embeds
#   examples/*      to target/guests/examples/<folder>.wasm, and into their own folder, which can be pushed then
#   tests/guests/*  to target/guests/tests/<folder or text file>.wasm
#
# The compiler is the one on the PATH when it has the target wasm32-wasip2. Else rustup is asked for the target, and where that
# cannot be had either, ./wasm-toolchain.sh puts a compiler together from Debian and npm packages. DEWAR_WASM_TOOLCHAIN names
# another folder for that one than ~/.cache/dewar/rust-wasm.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
target=wasm32-wasip2
out=$root/target/guests
prefix=${DEWAR_WASM_TOOLCHAIN:-${XDG_CACHE_HOME:-$HOME/.cache}/dewar/rust-wasm}

# What is meant for the host's own build must not change the guests.
unset RUSTC RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER
export CARGO_TARGET_DIR="$root/target/guest-build"
built=$CARGO_TARGET_DIR/$target/release

say() { printf '==> guests: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

has_target() {
    libraries=$("${RUSTC:-rustc}" --print target-libdir --target $target 2>/dev/null) && ls "$libraries"/libstd-*.rlib >/dev/null 2>&1
}

choose_compiler() {
    command -v cargo >/dev/null || fail 'cargo is missing: see https://rustup.rs'
    if has_target; then return; fi
    # Once the other compiler is there, rustup isn't asked each time anew for what it did not have.
    if [ ! -e "$prefix/ready" ] && command -v rustup >/dev/null; then
        say "rustup target add $target"
        if rustup target add $target >&2 && has_target; then return; fi
        say 'rustup cannot fetch the target, so a compiler is put together from packages'
    fi
    "$root/guest-sdk/wasm-toolchain.sh" "$prefix"
    export RUSTC="$prefix/bin/rustc"
    has_target || fail "$RUSTC has no target $target"
}

build() { (cd "$root/guest-sdk" && cargo build --locked --quiet --release --target $target "$@"); }

# Leaves what is there untouched when it is the same, so that nothing is built again because of it.
place() {
    if cmp -s "$1" "$2"; then return; fi
    mkdir -p "$(dirname "$2")"
    cp "$1" "$2.new"
    mv "$2.new" "$2"
    say "${2#"$root"/}, $(($(wc -c <"$2") / 1024)) KiB"
}

package_of() { sed -n '/^name = /{s/^name = "\(.*\)"$/\1/p;q;}' "$1/Cargo.toml"; }

# A library's file has underscores where its package has hyphens.
component_of() {
    package=$(package_of "$1")
    for file in "$built/$package.wasm" "$built/$(printf %s "$package" | tr - _).wasm"; do
        if [ -e "$file" ]; then printf %s "$file"; return; fi
    done
    fail "$package has left no component in $built"
}

# build_into FOLDER CRATE…: builds the crates in one go, and puts their components into the folder.
build_into() {
    into=$1
    shift
    packages=
    for crate in "$@"; do packages="$packages -p $(package_of "$crate")"; done
    # shellcheck disable=SC2086 # one word each
    build $packages
    for crate in "$@"; do place "$(component_of "$crate")" "$into/$(basename "$crate").wasm"; done
}

# crates IN [BUT]: the folders below one that have a manifest, but for one.
crates() {
    for manifest in "$root/$1"/*/Cargo.toml; do
        crate=$(dirname "$manifest")
        [ "$(basename "$crate")" = "${2:-}" ] || printf '%s\n' "$crate"
    done
}

build_buildpacks() {
    # The static buildpack has the file server within it, so that one comes first.
    build_into "$out/buildpacks" "$root/buildpacks/file-server"
    build_list "$out/buildpacks" "$(crates buildpacks file-server)"
}

build_examples() {
    build_list "$out/examples" "$(crates examples)"
    for crate in "$root"/examples/*/Cargo.toml; do
        name=$(basename "$(dirname "$crate")")
        place "$out/examples/$name.wasm" "$root/examples/$name/$name.wasm"
    done
}

build_tests() {
    build_list "$out/tests" "$(crates tests/guests)"
    (cd "$root/guest-sdk" && cargo run --locked --quiet --release -p dewar-assemble -- "$out/tests" "$root"/tests/guests/*.wat)
}

# Paths may have spaces in them, and lines are all there is for lists.
build_list() {
    list_into=$1
    old_ifs=$IFS
    IFS='
'
    set -f
    # shellcheck disable=SC2086 # split at the ends of lines
    set -- $2
    set +f
    IFS=$old_ifs
    build_into "$list_into" "$@"
}

parts=
while [ $# -gt 0 ]; do
    case "$1 ${2:-}" in
        '--only buildpacks' | '--only examples' | '--only tests') parts="$parts $2"; shift 2 ;;
        *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
    esac
done

started=$(date +%s)
choose_compiler
[ -d "$out" ] || say 'the first build takes about 3 minutes on two cores'
for part in ${parts:-buildpacks examples tests}; do "build_$part"; done
say "all in ${out#"$root"/}, after $(($(date +%s) - started)) s"
