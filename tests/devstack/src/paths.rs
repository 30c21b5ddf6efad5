//! Where things lie in the checkout and in the target directory.

use std::path::{Path, PathBuf};

use crate::ambient;

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// What the stack keeps between starts: the Python environment and the logs.
pub(crate) fn state() -> PathBuf {
    let target = ambient::environment("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("devstack")
}
