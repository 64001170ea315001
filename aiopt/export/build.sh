#!/bin/sh
# Source, patch, build, test. Begins anew each time.
. "$(dirname -- "$0")/lib.sh"
stop
remove "$work"
mkdir -p "$SOURCE_DIR" "$TARGET_DIR"
tar -xzf "$here/harness.tar.gz" -C "$TARGET_DIR"

@SOURCE@

patch_file=$here/diff.patch
[ "$arm" = candidate ] || patch_file=$here/incumbent.patch
if [ -s "$patch_file" ]; then
    (
        cd "$SOURCE_DIR"
        if command -v git >/dev/null; then
            # Whatever repository this folder may lie in is none of our business.
            unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
            GIT_CEILING_DIRECTORIES=$work git apply --whitespace=nowarn "$patch_file"
        else
            patch -p1 -s -f --no-backup-if-mismatch <"$patch_file"
        fi
    )
fi

fresh_run
@BUILD@
@TEST@
echo "built: $SOURCE_DIR"
