# Sourced by the run and test commands: installs Debian packages that are missing, and nothing when none is.

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need COMMAND PACKAGE: has the package installed when the command is not there.
missing=''
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }

install_missing() {
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null 2>&1 || die "these are missing, and there is no apt-get to install them with:$missing"
    if [ "$(id -u)" = 0 ]; then as_root=''; else as_root=sudo; command -v sudo >/dev/null 2>&1 || die "root or sudo is needed to install:$missing"; fi
    say "installing Debian packages:$missing"
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
    missing=''
}

# A minimal profile of rustup has neither.
need_checks() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy
}

need_cargo() {
    [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    command -v cargo >/dev/null 2>&1 || die 'cargo is missing: install Rust 1.95 or newer with rustup'
}
