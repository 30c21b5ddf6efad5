//! Lists the languages of the pages: every file in `texts/`, so that adding a file adds a language.

use std::{fmt::Write, fs, io, path::Path};

#[expect(clippy::disallowed_methods, reason = "this is how Cargo speaks to a build script")]
fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=texts");
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    let mut files = fs::read_dir("texts")?
        .map(|entry| entry?.path().canonicalize())
        .filter(|path| path.as_ref().map_or(true, |path| path.extension().is_some_and(|extension| extension == "json")))
        .collect::<io::Result<Vec<_>>>()?;
    files.sort();
    let mut entries = String::new();
    for path in &files {
        let language = path.file_stem().unwrap_or_default().to_string_lossy();
        writeln!(entries, "({language:?}, include_str!({:?})),", path.display().to_string())
            .map_err(io::Error::other)?;
    }
    fs::write(Path::new(&out).join("languages.rs"), format!("&[\n{entries}]\n"))
}
