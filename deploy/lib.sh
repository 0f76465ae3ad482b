# shellcheck shell=bash disable=SC2034 # what is set here is read by the scripts that source it
# Common ground of the scripts that build and run Rorqual: packages, a Rust toolchain, the programs.
#
# To be sourced under `set -euo pipefail`. Sets RQ_ROOT (the checkout) and RQ_TARGET (where cargo
# builds); `note`, `die` and `need_tools` come from the image scripts' library.
RQ_DEPLOY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RQ_ROOT=$(dirname "$RQ_DEPLOY")
RQ_TARGET=${CARGO_TARGET_DIR:-$RQ_ROOT/target}
RQ_BUILDER='' RQ_CARGO_BIN='' RQ_RUNTIME=''
# shellcheck source-path=SCRIPTDIR source=images/lib.sh
source "$RQ_DEPLOY/images/lib.sh"

# rq_install_packages PACKAGE... installs those that are missing.
rq_install_packages() {
  local package missing=()
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
}

# rq_choose_builder sets RQ_BUILDER, who runs cargo: the user behind sudo where the checkout is theirs,
# so that nothing in it comes to belong to root.
rq_choose_builder() {
  RQ_BUILDER=$(id -un)
  if [[ -n ${SUDO_USER:-} && $SUDO_USER != root ]] &&
    runuser -u "$SUDO_USER" -- test -w "$RQ_ROOT" &&
    { [[ ! -e $RQ_TARGET ]] || runuser -u "$SUDO_USER" -- test -w "$RQ_TARGET"; }; then
    RQ_BUILDER=$SUDO_USER
  fi
}

rq_home_of() { getent passwd "$1" | cut -d: -f6; }

# rq_as_builder COMMAND... runs it as the builder, with the Rust that was found.
rq_as_builder() {
  if [[ $RQ_BUILDER == "$(id -un)" ]]; then
    PATH=$RQ_CARGO_BIN:$PATH "$@"
  else
    runuser -u "$RQ_BUILDER" -- env HOME="$(rq_home_of "$RQ_BUILDER")" PATH="$RQ_CARGO_BIN:$PATH" "$@"
  fi
}

# rq_find_cargo sets RQ_BUILDER and RQ_CARGO_BIN. sudo resets PATH, so the places where rustup installs
# are looked at first; they also have the newer Rust.
rq_find_cargo() {
  local dir wanted version found=() old=''
  rq_choose_builder
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$RQ_ROOT/Cargo.toml")
  for dir in "$(rq_home_of "$RQ_BUILDER")/.cargo/bin" "${CARGO_HOME:-/nonexistent}/bin" /usr/local/cargo/bin \
    "$(dirname "$(command -v cargo || echo /nonexistent/cargo)")"; do
    [[ -x $dir/cargo ]] || continue
    RQ_CARGO_BIN=$dir
    version=$(rq_as_builder "$dir/rustc" --version 2>/dev/null | cut -d' ' -f2) || continue
    if printf '%s\n%s\n' "$wanted" "$version" | sort -VC; then
      printf '    Rust %s in %s, building as %s\n' "$version" "$dir" "$RQ_BUILDER"
      return
    fi
    found+=("$dir has ${version:-a cargo without a toolchain}")
  done
  ((${#found[@]} == 0)) || old=" (too old: $(printf '%s; ' "${found[@]}" | sed 's/; $//'))"
  die "Rust $wanted or later is needed$old. Install it for $RQ_BUILDER, then run this again:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
}

# rq_cargo ARGS... in the checkout.
rq_cargo() { (cd "$RQ_ROOT" && CARGO_TARGET_DIR=$RQ_TARGET rq_as_builder cargo "$@"); }

# rq_runtime_triple prints the target that rorqual-runtime is built for: with musl where Rust has that. Before glibc runs a
# program it asks the processor some eighty times what it can do, and in a virtual machine each answer comes from outside:
# two tenths of a millisecond for a container (tests/bench/launch).
rq_runtime_triple() {
  local host musl
  host=$(rq_as_builder rustc -vV | sed -n 's/^host: //p')
  musl=${host/-gnu/-musl}
  if [[ -d $(rq_as_builder rustc --print target-libdir --target "$musl" 2>/dev/null) ]]; then
    echo "$musl"
  else
    echo "$host"
  fi
}

# rq_want_musl has rustup install that target, if there is a rustup. It is no harm if it cannot.
rq_want_musl() {
  local host
  host=$(rq_as_builder rustc -vV | sed -n 's/^host: //p')
  [[ $(rq_runtime_triple) == "$host" && -x $RQ_CARGO_BIN/rustup ]] || return 0
  rq_as_builder timeout 120 rustup target add "${host/-gnu/-musl}" >/dev/null 2>&1 || true
}

# rq_build_programs makes the release builds of rorquald, rctl and rorqual-runtime; sets RQ_RUNTIME.
rq_build_programs() {
  local triple
  rq_cargo build --release --locked -p rorquald -p rctl
  # Static, because it also runs inside containers' file systems, and to start in less time. Optimised as a whole, and
  # without unwinding, it maps 0.6 MiB less and takes a tenth less time for a container (tests/bench/launch).
  rq_want_musl
  triple=$(rq_runtime_triple)
  RQ_RUNTIME=$RQ_TARGET/$triple/release/rorqual-runtime
  if ! RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
    CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_PANIC=abort \
    rq_cargo build --release --locked --target "$triple" -p rorqual-runtime; then
    note "    The static build of rorqual-runtime failed (its messages are above; is libc6-dev complete?)."
    note "    Building it dynamically linked instead: it works, and starts containers a little slower."
    rq_cargo build --release --locked -p rorqual-runtime
    RQ_RUNTIME=$RQ_TARGET/release/rorqual-runtime
  fi
}

# rq_find_runtime sets RQ_RUNTIME to what was built before: the static one is in the folder of its target, which is another
# one with musl than without. The last one built counts, as after a Rust has got musl.
rq_find_runtime() {
  local file
  RQ_RUNTIME=$RQ_TARGET/release/rorqual-runtime
  for file in "$RQ_TARGET"/*-linux-*/release/rorqual-runtime; do
    [[ ! -x $file || $RQ_RUNTIME -nt $file ]] || RQ_RUNTIME=$file
  done
  [[ -x $RQ_RUNTIME ]] || die "rorqual-runtime is not in $RQ_TARGET: build it first (deploy/quickstart does)"
}

# rq_program_dir prints where rorquald and rctl are once they are built. rorqual-runtime is RQ_RUNTIME.
rq_program_dir() { echo "$RQ_TARGET/release"; }
