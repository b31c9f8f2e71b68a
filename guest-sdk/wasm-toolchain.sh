#!/bin/sh
# Puts a Rust compiler for wasm32-wasip2 together where rustup cannot fetch that target: guest-sdk/wasm-toolchain.sh [FOLDER]
#
# From Debian come the compiler and the source of its standard library (rustc-web, rust-web-src), from npm the C library for WASI
# (@yowasp/clang), and the linkers are those of the toolchain that is there. The standard library is then built once. Everything
# lands in the folder (~/.cache/dewar/rust-wasm), nothing is installed, and it is 650 MB in the end. Only where npm is missing it is
# installed from Debian, which takes root.
#
# It takes some 2 minutes on two cores. A run that was interrupted is continued; when all is there it takes no time.
set -eu

target=wasm32-wasip2
npm_package=@yowasp/clang@22.0.0-git20542-10
npm_sha512=577d7fcfd1ab24408a7800930d4caf8369656c4522162ddbc6d2f91d283b1ffeacc9d4b1748fc0a15003f45e68ceb7cb8e8b5697407dae0851f3b9be0d433fce
# A change of what is built, or how, is a new recipe: what another one has left is thrown away.
recipe="1 $target $npm_package"

prefix=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/dewar/rust-wasm}
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
sysroot=$prefix/root/usr

say() { printf '==> wasm toolchain: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# step NAME TEXT: runs the function of that name, once; its mark is set when it has ended well.
step() {
    if [ -e "$prefix/done/$1" ]; then return; fi
    say "$2"
    step_started=$(date +%s)
    rm -rf "$prefix/work"
    mkdir -p "$prefix/work" "$prefix/done"
    "$1"
    rm -rf "$prefix/work"
    touch "$prefix/done/$1"
    say "  done after $(($(date +%s) - step_started)) s"
}

# apt with lists and a cache of its own, so that neither root nor a change to the system is needed.
private_apt() {
    tool=$1
    shift
    "$tool" -q -o Dir::State::lists="$prefix/apt/lists" -o Dir::Cache="$prefix/apt/cache" -o APT::Sandbox::User="$(id -un)" \
        -o Debug::NoLocking=true "$@"
}

# depends_on PACKAGE PATTERN: the first of its direct dependencies whose name matches.
depends_on() {
    private_apt apt-cache depends --no-recommends --no-suggests --important "$1" | sed -n 's/^ *|\{0,1\}Depends: //p' | grep -E "$2" | head -n 1
}

# What is needed of Debian, and is not here: names carry versions, so they are found by following dependencies.
packages() {
    library=$(depends_on libstd-rust-web-dev '^libstd-rust-web-[0-9]')
    [ -n "$library" ] || fail 'no package libstd-rust-web-dev: this takes a Debian that has rustc-web'
    printf '%s\n' rustc-web rust-web-src libstd-rust-web-dev "$library"
    private_apt apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$library" |
        grep -E '^lib' | sort -u | grep -vxF -e "$library" | while read -r dependency; do
        dpkg-query -W -f '${Status}' "$dependency" 2>/dev/null | grep -q '^install ok installed' || printf '%s\n' "$dependency"
    done
}

fetch_packages() {
    mkdir -p "$prefix/apt/lists/partial" "$prefix/apt/cache/archives/partial"
    private_apt apt-get update >/dev/null
    # Checked by apt against the signed lists.
    (cd "$prefix/work" && packages >names && private_apt apt-get download $(cat names) >/dev/null)
    rm -rf "$prefix/debs"
    mkdir "$prefix/debs"
    mv "$prefix"/work/*.deb "$prefix/debs"
    rm -rf "$prefix/apt"
}

unpack_packages() {
    rm -rf "$prefix/root"
    mkdir "$prefix/root"
    for package in "$prefix"/debs/*.deb; do
        case $package in
            # Of the compiler's source only the library is needed, a quarter of it.
            */rust-web-src*)
                dpkg-deb --fsys-tarfile "$package" | tar -x -C "$prefix/root" --wildcards \
                    './usr/src/rustc-*/library' './usr/src/rustc-*/Cargo.lock' './usr/lib/rustlib/src'
                ;;
            *) dpkg-deb -x "$package" "$prefix/root" ;;
        esac
    done
    [ -x "$sysroot/bin/rustc" ] || fail 'the packages have no compiler in them'
    rm -rf "$prefix/debs"
}

# The folder may be moved afterwards: the compiler is found from where this file is.
write_compiler() {
    library=$(cd "$sysroot" && dirname "$(find lib -name 'librustc_driver-*.so' | head -n 1)")
    mkdir -p "$prefix/bin"
    cat >"$prefix/bin/rustc" <<END
#!/bin/sh
usr=\$(dirname "\$(readlink -f "\$0")")/../root/usr
LD_LIBRARY_PATH=\$usr/$library\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec "\$usr/bin/rustc" "\$@"
END
    chmod +x "$prefix/bin/rustc"
    "$prefix/bin/rustc" --version >&2
}

need_npm() {
    if command -v npm >/dev/null; then return; fi
    say '  npm is missing and is installed from Debian'
    if [ "$(id -u)" = 0 ]; then as_root=; else as_root=sudo; fi
    [ -z "$as_root" ] || command -v sudo >/dev/null || fail 'npm is missing: run apt-get install npm as root, then this again'
    $as_root apt-get update -q >&2
    $as_root apt-get install -q -y --no-install-recommends npm >&2
}

fetch_c_library() {
    need_npm
    (
        cd "$prefix/work"
        npm pack --silent "$npm_package" >/dev/null
        printf '%s  %s\n' "$npm_sha512" ./*.tgz | sha512sum --check --quiet >&2 || fail "$npm_package is not what it was"
        tar -xzf ./*.tgz package/gen/llvm-resources.tar
        tar -xf package/gen/llvm-resources.tar lib/wasm32-wasip1
    )
    libraries=$sysroot/lib/rustlib/$target/lib
    mkdir -p "$libraries/self-contained"
    (cd "$prefix/work/lib/wasm32-wasip1" && cp libc.a crt1-command.o crt1-reactor.o "$libraries/self-contained")
}

# Links, because they find their own libraries next to them. Made anew each time: rustup may have moved on.
link_linkers() {
    host=$(rustc -vV | sed -n 's/^host: //p')
    from=$(rustc --print sysroot)/lib/rustlib/$host/bin
    to=$sysroot/lib/rustlib/$host/bin
    mkdir -p "$to"
    for linker in rust-lld wasm-component-ld; do
        [ -x "$from/$linker" ] || fail "$linker is missing in $from: the toolchain on the PATH should be one of rustup's"
        ln -sfn "$from/$linker" "$to/$linker"
    done
}

build_library() {
    link_linkers
    mkdir -p "$prefix/work/src"
    printf '[package]\nname = "library"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n' >"$prefix/work/Cargo.toml"
    : >"$prefix/work/src/lib.rs"
    # The compiler calls itself stable, and it is its own library that it builds.
    (cd "$prefix/work" && env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS RUSTC="$prefix/bin/rustc" RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$prefix/work/target" \
        cargo build --quiet --release --target $target -Zbuild-std=std,panic_abort,proc_macro --config 'build.rustflags=["-Cembed-bitcode=yes"]')
    libraries=$sysroot/lib/rustlib/$target/lib
    rm -f "$libraries"/*.rlib "$libraries"/*.rmeta
    rm -f "$prefix/work/target/$target/release/deps"/liblibrary*
    cp "$prefix/work/target/$target/release/deps"/*.rlib "$libraries"
}

try_it() {
    link_linkers
    printf 'fn main() { println!("hello from {:?}", std::env::args()); }\n' >"$prefix/work/hello.rs"
    "$prefix/bin/rustc" --target $target -O -o "$prefix/work/hello.wasm" "$prefix/work/hello.rs"
    # The first eight bytes of a component.
    [ "$(od -An -tx1 -N8 "$prefix/work/hello.wasm" | tr -d ' \n')" = 0061736d0d000100 ] || fail 'what it compiles is not a component'
}

if [ "$(cat "$prefix/ready" 2>/dev/null)" = "$recipe" ]; then
    link_linkers
    exit 0
fi
command -v apt-get >/dev/null || fail "there is no apt-get, and rustup has no target $target: nothing else is known to work"
command -v cargo >/dev/null || fail 'cargo is missing: see https://rustup.rs'
if [ "$(cat "$prefix/recipe" 2>/dev/null)" != "$recipe" ]; then
    rm -rf "$prefix/done" "$prefix/ready"
    printf '%s\n' "$recipe" >"$prefix/recipe"
fi

say "a compiler for $target in $prefix takes about 2 minutes, once"
step fetch_packages 'fetching the compiler from Debian, 140 MB'
step unpack_packages 'unpacking it'
step write_compiler 'trying it'
step fetch_c_library 'fetching the C library for WASI from npm, 30 MB'
step build_library 'building the standard library, about a minute'
step try_it 'compiling a component with it'
printf '%s\n' "$recipe" >"$prefix/ready"
say "$("$prefix/bin/rustc" --version) is ready"
