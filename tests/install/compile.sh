#!/bin/sh
# Compiles an example with the flags of pkg-config: compile.sh pkg-config cc source program [flag...]
set -e
flags=$("$1" --cflags --libs weighbridge)
compiler=$2 source=$3 program=$4
shift 4
# pkg-config quotes for a shell, so a shell reads it.
eval "exec \"\$compiler\" -std=c11 -Wall -Wextra -Werror \"\$source\" -o \"\$program\" $flags \"\$@\""
