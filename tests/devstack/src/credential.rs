//! The app credential of `cargo dev --live`: from a file that only its owner may read, or from standard input, so that the
//! secret is in no shell history and in no file that others can open.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// The largest credential. A certificate with its key has a few kilobytes; Secrets Manager takes 64.
const MAX_BYTES: u64 = 65_536;

/// The place of the credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CredentialSource {
    File(PathBuf),
    StandardInput,
}

impl CredentialSource {
    /// Parses the value of `--credential`: a path, or `-`.
    pub(crate) fn parse(text: &str) -> Self {
        if text == "-" { Self::StandardInput } else { Self::File(text.into()) }
    }

    /// Reads the credential. The error is one line that says what to do, and never repeats the content.
    pub(crate) fn read(&self) -> Result<Value, String> {
        let (name, text) = match self {
            Self::File(path) => (path.display().to_string(), read_private(path)?),
            Self::StandardInput => ("the credential on standard input".to_owned(), read_text(io::stdin())?),
        };
        check(&text).map_err(|wrong| format!("{name} {wrong}"))
    }
}

fn read_private(path: &Path) -> Result<String, String> {
    let name = path.display();
    let file = File::open(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("{name} cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("{name} is not a file; give a file, or - for standard input"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!("others may read {name}; run `chmod 600 {name}`, then start again"));
    }
    read_text(file)
}

fn read_text(from: impl Read) -> Result<String, String> {
    let mut text = String::new();
    let limited = from.take(MAX_BYTES).read_to_string(&mut text);
    limited.map(|_| text).map_err(|error| format!("the credential cannot be read: {error}"))
}

/// Returns the credential if it has the form of `functions/interface.md`, section 3, and works outside of AWS.
fn check(text: &str) -> Result<Value, &'static str> {
    let credential: Value = serde_json::from_str(text).map_err(|_| "is not JSON")?;
    let has = |name: &str| credential[name].as_str().is_some_and(|value| !value.is_empty());
    if !has("client_id") {
        return Err("has no client_id: copy the application (client) id of the app registration into it");
    }
    if credential["federated"] == true || has("kms_key_id") {
        return Err(
            "needs AWS: `federated` and `kms_key_id` work in a deployment; use a client_secret or a certificate",
        );
    }
    if has("client_secret") || (has("certificate") && has("private_key")) {
        return Ok(credential);
    }
    Err("has neither a client_secret nor a certificate with its private_key")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const SECRET: &str = r#"{"client_id": "5b1c7d0e-0a0b-4c0d-8e0f-0123456789ab", "client_secret": "hidden"}"#;

    /// Reads a file with this content and mode.
    fn read_file(name: &str, content: &str, mode: u32) -> Result<Value, String> {
        let path = std::env::temp_dir().join(format!("{name}-{}.json", std::process::id()));
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let read = CredentialSource::File(path.clone()).read();
        fs::remove_file(path).unwrap();
        read
    }

    #[test]
    fn file_that_only_its_owner_may_read_is_taken() {
        assert_eq!(read_file("owner", SECRET, 0o600).unwrap()["client_secret"], "hidden");
        assert!(read_file("owner-read", SECRET, 0o400).is_ok());
    }

    #[test]
    fn file_that_others_may_read_is_refused_with_the_remedy() {
        for mode in [0o640, 0o604, 0o644, 0o660, 0o666] {
            let message = read_file("others", SECRET, mode).unwrap_err();
            assert!(message.contains("chmod 600") && !message.contains("hidden"), "{message}");
        }
    }

    #[test]
    fn credential_that_cannot_work_here_is_refused() {
        for (content, word) in [
            ("", "not JSON"),
            ("[]", "no client_id"),
            (r#"{"client_secret": "hidden"}"#, "no client_id"),
            (r#"{"client_id": "a"}"#, "neither"),
            (r#"{"client_id": "a", "certificate": "c"}"#, "neither"),
            (r#"{"client_id": "a", "federated": true}"#, "needs AWS"),
            (r#"{"client_id": "a", "certificate": "c", "kms_key_id": "k"}"#, "needs AWS"),
        ] {
            let message = read_file("wrong", content, 0o600).unwrap_err();
            assert!(message.contains(word) && !message.contains("hidden") && !message.contains('\n'), "{message}");
        }
        assert!(
            read_file("certificate", r#"{"client_id": "a", "certificate": "c", "private_key": "k"}"#, 0o600).is_ok()
        );
        let missing = CredentialSource::File("/nowhere/app.json".into()).read().unwrap_err();
        assert!(missing.contains("/nowhere/app.json cannot be read"), "{missing}");
    }
}
