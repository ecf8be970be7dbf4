//! Zstandard as a stream: frame after frame, as zstd, pzstd and `cat` write them.
//!
//! Owns going from frame to frame, and refusing one that would take memory without bound. What a frame holds is
//! decoded by the ruzstd crate, which knows one frame at a time.

use std::io::{self, BufRead, Chain, Cursor, Read};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

pub(super) const MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

/// What all levels of zstd keep to, `--long` included; several times as much memory is taken for it.
const MAX_WINDOW_BYTES: u64 = 128 << 20;

/// What the frames of a stream hold, one behind the other.
pub(super) struct Frames<R: BufRead>(State<R>);

type Frame<R> = StreamingDecoder<Chain<Cursor<Vec<u8>>, R>, FrameDecoder>;

enum State<R: BufRead> {
    Between(R),
    Within(Box<Frame<R>>),
    Over,
}

impl<R: BufRead> Frames<R> {
    pub fn new(source: R) -> Self {
        Self(State::Between(source))
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // After an error nothing more comes.
            match std::mem::replace(&mut self.0, State::Over) {
                State::Over => return Ok(0),
                State::Within(mut frame) => match frame.read(buffer)? {
                    0 if !buffer.is_empty() => self.0 = State::Between(ended(*frame)?),
                    num_read => {
                        self.0 = State::Within(frame);
                        return Ok(num_read);
                    }
                },
                State::Between(mut source) => match next_frame(&mut source)? {
                    Next::End => {}
                    Next::Skipped => self.0 = State::Between(source),
                    Next::Header(header) => {
                        let frame = StreamingDecoder::new(Cursor::new(header).chain(source));
                        self.0 = State::Within(Box::new(frame.map_err(|error| invalid(error.to_string()))?));
                    }
                },
            }
        }
    }
}

enum Next {
    End,
    /// What is for other programs.
    Skipped,
    /// The bytes that a frame begins with.
    Header(Vec<u8>),
}

/// Reads the header of a frame (RFC 8878, section 3.1).
fn next_frame(source: &mut impl BufRead) -> io::Result<Next> {
    if source.fill_buf()?.is_empty() {
        return Ok(Next::End);
    }
    let mut header = Vec::new();
    let magic = number(source, 4, &mut header)? as u32;
    if (0x184d_2a50..=0x184d_2a5f).contains(&magic) {
        let num_bytes = number(source, 4, &mut header)?;
        return match io::copy(&mut source.take(num_bytes), &mut io::sink())? {
            copied if copied == num_bytes => Ok(Next::Skipped),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
    }
    if magic.to_le_bytes() != MAGIC {
        return Err(invalid("what follows a zstd frame is none".to_owned()));
    }
    let descriptor = number(source, 1, &mut header)?;
    let is_single = descriptor & 0x20 != 0;
    let window_bytes = if is_single {
        number(source, [0, 1, 2, 4][descriptor as usize & 3], &mut header)?;
        match descriptor >> 6 {
            0 => number(source, 1, &mut header)?,
            1 => number(source, 2, &mut header)? + 256,
            2 => number(source, 4, &mut header)?,
            _ => number(source, 8, &mut header)?,
        }
    } else {
        let window = number(source, 1, &mut header)?;
        let base = 1_u64 << (10 + (window >> 3));
        base + base / 8 * (window & 7)
    };
    if window_bytes > MAX_WINDOW_BYTES {
        return Err(invalid(format!(
            "its zstd frame needs {} MiB at once, and at most {} are taken: unpack it with `zstd -d --long=31` first",
            window_bytes >> 20,
            MAX_WINDOW_BYTES >> 20
        )));
    }
    Ok(Next::Header(header))
}

/// Reads a number of so many bytes, and keeps these.
fn number(source: &mut impl Read, num_bytes: usize, header: &mut Vec<u8>) -> io::Result<u64> {
    let mut bytes = [0; 8];
    source.read_exact(&mut bytes[..num_bytes])?;
    header.extend_from_slice(&bytes[..num_bytes]);
    Ok(u64::from_le_bytes(bytes))
}

/// Checks a frame that has been read, where it says how; returns what comes behind it.
fn ended<R: BufRead>(frame: Frame<R>) -> io::Result<R> {
    let told = frame.decoder.get_checksum_from_data();
    if told.is_some() && told != frame.decoder.get_calculated_checksum() {
        return Err(invalid("its zstd frame is damaged: the checksum is another".to_owned()));
    }
    Ok(frame.into_inner().into_inner().1)
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn read(packed: &[u8]) -> Result<String, String> {
        let mut text = String::new();
        // Few bytes at a time, as a pipe may have them.
        let source = BufReader::with_capacity(3, packed);
        match Frames::new(source).read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(error.to_string()),
        }
    }

    fn packed(text: &str) -> Vec<u8> {
        compress_to_vec(text.as_bytes(), CompressionLevel::Fastest)
    }

    /// All but the first frame was left out without a word.
    #[test]
    fn all_frames_are_read_and_what_is_for_others_is_skipped() {
        let (one, two) = ("{\"prompt\": \"a\"}\n".repeat(3), "{\"prompt\": \"b\"}\n".repeat(20_000));
        let skippable = [&0x184d_2a5a_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"hello"].concat();
        let all = [packed(&one), skippable.clone(), packed(""), packed(&two), skippable].concat();
        assert_eq!(read(&all), Ok(one.clone() + &two));
        assert_eq!(read(b""), Ok(String::new()));
        let cut = [packed(&one), packed(&two)].concat();
        for end in [packed(&one).len() + 2, packed(&one).len() + 9, cut.len() - 1] {
            assert!(read(&cut[..end]).is_err(), "{end}");
        }
        let followed = [&packed(&one)[..], b"and more"].concat();
        assert_eq!(read(&followed), Err("what follows a zstd frame is none".to_owned()));
    }

    /// 200 KB took gigabytes, and a panic of the decoder's ended the run.
    #[test]
    fn a_frame_that_needs_a_huge_window_is_refused() {
        let by_window = [MAGIC, &[0x00, 0xd0]].concat();
        let by_size = [MAGIC, &[0xe0], &(u64::MAX / 2).to_le_bytes()].concat();
        for header in [by_window, by_size] {
            let error = read(&[&header[..], &[0; 100]].concat()).expect_err("it is too large");
            assert!(error.contains("at most 128 are taken"), "{error}");
        }
    }
}
