#!/bin/sh
# Compiles an example with the flags of pkg-config: compile.sh pkg-config cc source program
set -e
flags=$("$1" --cflags --libs weighbridge)
# pkg-config quotes for a shell, so a shell reads it.
eval "set -- \"\$2\" -std=c11 -Wall -Wextra -Werror \"\$3\" -o \"\$4\" $flags"
exec "$@"
