#!/bin/sh
# The linker of an optimized library (rustc.sh): gives its symbols the version of the interface, so that a program
# that was linked to another minor version is refused when it starts. The compiler's own list of symbols has none,
# and GNU ld takes only one list.
for argument; do
    case $argument in
    -Wl,--version-script=*)
        version=WEIGHBRIDGE_$CARGO_PKG_VERSION_MAJOR.$CARGO_PKG_VERSION_MINOR
        sed -i "1s/^{/$version {/" "${argument#*=}" || exit
        ;;
    esac
done
exec cc "$@"
