//! The tests lie in `tests/it/`: one binary for all of them.
