#!/bin/sh
# RUSTC_WORKSPACE_WRAPPER of `make fuzz`: compiles this project's own crates so that libFuzzer sees which of their branches
# an input takes. The flags are cargo-fuzz's for `--sanitizer none`, and stable. Dependencies stay as they are compiled
# for everything else.
exec "$@" --cfg fuzzing -Cdebug-assertions -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
