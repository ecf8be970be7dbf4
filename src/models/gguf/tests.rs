//! Tests of the GGUF header reader: values, places, and what damage does.

use proptest::prelude::*;

use super::testing::{GgufFile, write};
use super::*;

fn small() -> GgufFile {
    GgufFile::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .bool("tokenizer.ggml.add_bos_token", true)
        .raw("llama.rope.freq_base", 6, &10000.0f32.to_le_bytes())
        .raw("a.signed", 11, &(-5i64).to_le_bytes())
        .strings("tokenizer.ggml.tokens", &["a", "b", "é"])
        .i32s("tokenizer.ggml.token_type", &[1, 1, 3])
        .f32s("tokenizer.ggml.scores", &[0.5, -1.0, 0.0])
        .tensor("w", 0, &[3, 2], &[0; 24])
        .tensor("q", 8, &[32, 2], &[0; 68])
}

fn read(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
    GgufHeader::read(write(bytes).path())
}

#[test]
fn values_and_tensors_come_back() {
    let header = small().header();
    assert_eq!(header.version(), 3);
    assert_eq!(header.str("general.architecture"), Some("llama"));
    assert_eq!(header.u64("llama.block_count"), Some(2));
    assert_eq!(header.bool("tokenizer.ggml.add_bos_token"), Some(true));
    assert_eq!(header.f32("llama.rope.freq_base"), Some(10000.0));
    assert_eq!(header.value("a.signed"), Some(&GgufValue::Signed(-5)));
    assert_eq!(header.u64("a.signed"), None, "a negative number is not unsigned");
    let tokens = header.strings("tokenizer.ggml.tokens").expect("an array of strings");
    assert_eq!(tokens.iter().map(|t| &**t).collect::<Vec<_>>(), ["a", "b", "é"]);
    assert_eq!(header.i64s("tokenizer.ggml.token_type"), Some(vec![1, 1, 3]));
    assert_eq!(header.f32s("tokenizer.ggml.scores"), Some(vec![0.5, -1.0, 0.0]));
    assert_eq!(header.f32s("tokenizer.ggml.token_type"), None, "integers are not floats");
    assert_eq!(header.str("llama.block_count"), None);
    assert_eq!(header.metadata().count(), 8);

    let [w, q] = header.tensors() else { panic!("two tensors") };
    assert_eq!((w.name.as_str(), w.shape.as_slice(), w.num_bytes), ("w", &[2, 3][..], 24));
    assert_eq!((q.ggml_type.name(), q.num_bytes), ("Q8_0", 68));
    assert_eq!(q.offset_bytes, w.offset_bytes + 32);
    assert_eq!(w.offset_bytes % header.alignment(), 0);
}

#[test]
fn every_truncation_is_an_error_that_names_the_file() {
    let bytes = small().bytes();
    for len in 0..bytes.len() {
        let file = write(&bytes[..len]);
        let error = GgufHeader::read(file.path()).expect_err("a cut file is refused");
        let name = file.path().to_str().expect("temporary paths are UTF-8");
        assert!(error.to_string().starts_with(name), "{len}: {error}");
    }
    assert!(read(&bytes).is_ok());
}

#[test]
fn refuses_other_files_and_versions() {
    assert!(matches!(read(b"PK\x03\x04 something"), Err(GgufError::NotGguf { .. })));
    let mut bytes = small().bytes();
    bytes[4] = 1;
    assert!(matches!(read(&bytes), Err(GgufError::Version { version: 1, .. })));
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(matches!(read(&bytes), Err(GgufError::Version { .. })));
    assert!(matches!(GgufHeader::read(std::path::Path::new("no/such.gguf")), Err(GgufError::Io { .. })));
    assert!(matches!(GgufHeader::read(std::path::Path::new(".")), Err(GgufError::Io { .. })));
}

#[test]
fn refuses_what_cannot_be() {
    let refused = [
        ("twice", small().u32("llama.block_count", 3)),
        ("power of two", small().u32("general.alignment", 24)),
        ("unknown type 77", small().raw("odd", 77, &[])),
        ("not UTF-8", small().raw("odd", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe])),
        ("twice", small().tensor("w", 0, &[1], &[0; 4])),
        ("of the unknown type 99; use another", small().tensor("x", 99, &[1], &[0; 4])),
        ("0 dimensions", small().tensor("x", 0, &[], &[0; 4])),
        ("5 dimensions", small().tensor("x", 0, &[1, 1, 1, 1, 1], &[0; 4])),
        ("cannot have", small().tensor("x", 0, &[0], &[0; 4])),
        ("cannot have", small().tensor("x", 8, &[33], &[0; 68])),
        ("cannot have", small().tensor("x", 0, &[1 << 40, 1 << 40], &[0; 4])),
        ("truncated", small().tensor("x", 0, &[1 << 40], &[0; 4])),
        ("truncated", small().tensor("x", 0, &[9], &[0; 32])),
    ];
    for (problem, file) in refused {
        let error = read(&file.bytes()).expect_err(problem).to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn claimed_counts_are_checked_before_memory_is_taken() {
    let huge = u64::MAX.to_le_bytes();
    let array = |code: u32| [code.to_le_bytes().as_slice(), &huge].concat();
    for value in [array(0), array(8), array(9), array(12)] {
        let error = read(&small().raw("big", 9, &value).bytes()).expect_err("no file is that long");
        assert!(error.to_string().contains("cannot fit"), "{error}");
    }
    let mut nested = Vec::new();
    for _ in 0..100 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    let error = read(&small().raw("deep", 9, &nested).bytes()).expect_err("too deep");
    assert!(error.to_string().contains("nested"), "{error}");
    for at in [8, 16] {
        let mut bytes = small().bytes();
        bytes[at..at + 8].copy_from_slice(&huge);
        assert!(read(&bytes).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever bytes are changed, reading ends in a header whose tensors lie inside the file or
    /// in an error; it neither panics nor takes memory the file does not justify.
    #[test]
    fn random_damage_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = small().bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(header) = read(&bytes) {
            for tensor in header.tensors() {
                prop_assert!(tensor.offset_bytes + tensor.num_bytes <= bytes.len() as u64);
            }
        }
    }
}
