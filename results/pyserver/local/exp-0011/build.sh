#!/bin/sh
# Source, patch, build, test. Begins anew each time.
. "$(dirname -- "$0")/lib.sh"
stop
remove "$work"
mkdir -p "$SOURCE_DIR" "$TARGET_DIR"
tar -xzf "$here/harness.tar.gz" -C "$TARGET_DIR"

[ -f "$here/source.tar.gz" ] || fail "source.tar.gz is missing; README.md says why"
tar -xzf "$here/source.tar.gz" -C "$SOURCE_DIR"

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
stage 30 "$TARGET_DIR"/build.sh
stage 20 "$TARGET_DIR"/test.sh
echo "built: $SOURCE_DIR"
