"""How CPU processes are started: settings of glibc's malloc, in the environment before a process begins."""

# glibc maps every large buffer afresh by default, and the kernel then clears its pages at each step: keeping them
# saves 10-50 % of a CPU step. `make demo` sets the same.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TOP_PAD_": "67108864",
}
