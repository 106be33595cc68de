//! Benchmarks of ringecho: what is measured, and how, stands in `docs/benchmarking.md`.
