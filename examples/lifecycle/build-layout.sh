#!/bin/sh
# [stages.build] run = ["./build-layout.sh"]: C by gcc or clang, in as many layouts as are asked for.
#
# In target.toml:
#   [artifact]
#   paths = ["/program"]
#   [layout]
#   variable = "LAYOUT"    # 0: as written; 1, 2, …: the same objects in another order, and moved
#   rebuilds = 6
#
# It runs the same instructions on the same data at other addresses. What has no effect: another
# order with -flto, which orders anew (take -falign-functions=$((16 << LAYOUT % 4)) there), and the
# padding with -Wl,--gc-sections, which drops it.
set -eu
LAYOUT=${LAYOUT:-0}
cc=${CC:-cc}

objects=
for source in src/*.c; do # ADAPT
    object=${source%.c}.o
    $cc -O2 -c -o "$object" "$source" # ADAPT
    objects="$objects $object"
done

pad=
if [ "$LAYOUT" -ne 0 ]; then
    # The order is that of checksums over number and name: another for each number, always the same.
    objects=$(
        for object in $objects; do
            echo "$(printf '%s' "$LAYOUT $object" | cksum) $object"
        done | sort -n | cut -d ' ' -f 3
    )
    # An object in front that is never run or read moves all code and data by 16 bytes to 4 KiB.
    pad=pad.o
    bytes=$((16 * (1 + LAYOUT * 37 % 255)))
    printf '%s\n' .text ".skip $bytes" .data ".skip $bytes" '.section .note.GNU-stack,"",%progbits' |
        $cc -c -x assembler -o "$pad" -
fi

# shellcheck disable=SC2086 # several words
$cc -o program $pad $objects -lm # ADAPT
