//! The shared harness of the benchmarks.
