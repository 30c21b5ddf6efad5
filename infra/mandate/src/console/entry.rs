//! The file that leads the operator's browser to the console.
//!
//! Every user of a machine can read the arguments of its programs. So the address with the token is no argument of the
//! browser: it lies in a file that only its owner can read, and the browser is started with the name of that file.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use aws_lc_rs::rand::SecureRandom;
use shared::{random::random_bytes, text::hex};

/// A page in a folder of its own. Both are removed with this value.
#[derive(Debug)]
pub(super) struct EntryPage {
    folder: PathBuf,
}

impl EntryPage {
    /// Writes a page that goes to `address` at once. The address has no character that markup would need escaped.
    ///
    /// # Errors
    /// The folder for temporary files cannot be written to.
    pub(super) fn create(address: &str, random: &dyn SecureRandom) -> io::Result<Self> {
        let name = random_bytes::<16>(random).map_err(|error| io::Error::other(error.to_string()))?;
        let folder = std::env::temp_dir().join(format!("mandate-console-{}", hex(name.as_slice())));
        let (mut builder, mut options) = (DirBuilder::new(), OpenOptions::new());
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
            builder.mode(0o700);
            options.mode(0o600);
        }
        // Fails if somebody made it before.
        builder.create(&folder)?;
        let page = Self { folder };
        options.open(page.path())?.write_all(html(address).as_bytes())?;
        Ok(page)
    }

    /// The page, for the program that opens it.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("open.html")
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for EntryPage {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Removes the folder of an entry page, if it is still there.
pub(super) fn remove(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
}

/// A page that goes to `address` at once, and shows it as a link to a browser that does not.
pub(super) fn html(address: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <meta http-equiv=\"refresh\" content=\"0; url={address}\">\n<title>Mandate</title>\n\
         <p><a href=\"{address}\">Open the console</a></p>\n</html>\n"
    )
}
