#!/bin/sh
# Cargo runs this with the compiler and its arguments (.cargo/config.toml).

# Sanitizers are an unstable option of the compiler (tests/checkers/run.py).
case " $* " in
*" -Zsanitizer="*) export RUSTC_BOOTSTRAP=1 ;;
esac
# Paths of this machine that an optimized library would contain, those of panics, become relative. A debug
# build keeps them for debuggers.
case " $* " in
*" opt-level="*) ;;
*) exec "$@" ;;
esac
checkout=${0%/tools/rustc.sh}
# A linker that is chosen stays, as that of cargo-zigbuild for wheels, whose symbols have no versions.
case " $* " in
*"linker="*) ;;
*" --crate-name weighbridge "*" --crate-type cdylib "*) set -- "$@" -Clinker-flavor=gcc "-Clinker=$checkout/tools/link.sh" ;;
esac
# A third of the usual threshold: the library is a thirteenth smaller, and plans take as long.
exec "$@" \
    "-Cllvm-args=-inline-threshold=80" \
    "--remap-path-prefix=${RUSTUP_HOME:-$HOME/.rustup}=rustup" \
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
    "--remap-path-prefix=$checkout=weighbridge"
