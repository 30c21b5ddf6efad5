//! Lines as a gzip file.

use std::{
    cell::RefCell,
    io::{Result, Write},
};

use flate2::{Compression, Crc, write::DeflateEncoder};

/// The level of compression. Level 6 makes lines of incidents a seventh smaller and takes almost twice the time.
const LEVEL: Compression = Compression::new(2);

/// The amount of lines that is compressed at once, in bytes. Nothing in it refers to what was compressed before, which makes
/// a long file 5 % larger; with a quarter of the amount, 18 %.
const PIECE_BYTES: usize = 256 << 10;

/// The start of a file without a name, a time or a known file system.
/// <https://www.rfc-editor.org/rfc/rfc1952#section-2.3>
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

thread_local! {
    /// The encoder of all files. One for each would hold 380 KB for as long as its tenant is worked on.
    static ENCODER: RefCell<DeflateEncoder<Vec<u8>>> = RefCell::new(DeflateEncoder::new(Vec::new(), LEVEL));
}

/// Lines that are compressed as they come.
pub(super) struct CompressedLines {
    file: Vec<u8>,
    /// What is not compressed yet.
    piece: Vec<u8>,
    crc: Crc,
}

impl CompressedLines {
    pub(super) fn new() -> Self {
        Self { file: HEADER.to_vec(), piece: Vec::new(), crc: Crc::new() }
    }

    /// The size of what is compressed so far, in bytes.
    pub(super) fn compressed_size(&self) -> usize {
        self.file.len()
    }

    /// Returns the complete file.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.compress(&[], DeflateEncoder::try_finish)?;
        self.file.extend_from_slice(&self.crc.sum().to_le_bytes());
        self.file.extend_from_slice(&self.crc.amount().to_le_bytes());
        Ok(self.file)
    }

    /// Compresses what is left and `lines` after it. `end` is how the encoder ends this piece.
    fn compress(&mut self, lines: &[u8], end: impl FnOnce(&mut DeflateEncoder<Vec<u8>>) -> Result<()>) -> Result<()> {
        self.crc.update(&self.piece);
        self.crc.update(lines);
        ENCODER.with_borrow_mut(|encoder| {
            // It forgets what it compressed before, which may be another tenant's.
            encoder.reset(std::mem::take(&mut self.file))?;
            encoder.write_all(&self.piece)?;
            encoder.write_all(lines)?;
            end(encoder)?;
            self.file = std::mem::take(encoder.get_mut());
            self.piece.clear();
            Ok(())
        })
    }
}

impl Write for CompressedLines {
    fn write(&mut self, lines: &[u8]) -> Result<usize> {
        if self.piece.len() + lines.len() < PIECE_BYTES {
            self.piece.extend_from_slice(lines);
        } else {
            self.compress(lines, DeflateEncoder::flush)?;
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn file_of(writes: &[&[u8]]) -> Vec<u8> {
        let mut lines = CompressedLines::new();
        for write in writes {
            lines.write_all(write).unwrap();
        }
        lines.finish().unwrap()
    }

    /// Text that compresses, and of which no two places are alike for long.
    fn text(bytes: usize) -> Vec<u8> {
        (0_u32..)
            .flat_map(|number| format!("{}\n", number.wrapping_mul(2_654_435_761)).into_bytes())
            .take(bytes)
            .collect()
    }

    #[test]
    fn files_hold_what_was_written_as_one_member() {
        for writes in [
            vec![],
            vec![1],
            vec![PIECE_BYTES - 1],
            vec![PIECE_BYTES - 1, 1],
            vec![PIECE_BYTES],
            vec![3 * PIECE_BYTES + 1, 7],
            vec![1000; 1000],
        ] {
            let texts: Vec<_> = writes.iter().map(|bytes| text(*bytes)).collect();
            let file = file_of(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let (mut decoder, mut read) = (GzDecoder::new(file.as_slice()), Vec::new());
            decoder.read_to_end(&mut read).unwrap();
            assert!(read == texts.concat(), "{writes:?}");
            assert!(decoder.into_inner().is_empty(), "{writes:?}: nothing follows the first member");
        }
    }

    #[test]
    fn file_does_not_depend_on_files_that_are_written_beside_it() {
        let (one, other) = (text(PIECE_BYTES), [text(PIECE_BYTES), b"other".to_vec()].concat());
        let alone = file_of(&[&one, b"rest"]);
        let (mut first, mut second) = (CompressedLines::new(), CompressedLines::new());
        second.write_all(&other).unwrap();
        first.write_all(&one).unwrap();
        second.write_all(&one).unwrap();
        first.write_all(b"rest").unwrap();
        drop(second);
        assert!(first.finish().unwrap() == alone);
    }
}
