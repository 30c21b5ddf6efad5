//! Paths in the checkout and in the target directory.

use std::path::{Path, PathBuf};

use crate::ambient;

/// The root directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The directory of the Python environment and the logs, which outlive a stack.
pub(crate) fn state() -> PathBuf {
    let target = ambient::environment("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    target.join("devstack")
}
