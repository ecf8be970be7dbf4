//! What is fuzzed: bytes in, no panic and no contradiction out.
//!
//! Owns an entry point for each parser of bytes that somebody else wrote. All go through a file, as a run does.

use std::fs;
use std::path::{Path, PathBuf};

use mlxbatch::batch::{
    BatchError, InputPath, Inputs, NextRequest, ReaderOptions, RequestReader, count_requests,
};
use mlxbatch::cache::{Place, Tier};
use mlxbatch::mlx::{ComputeDevice, ComputeDtype, LoadedModel, UsedAdapter, WeightSource};
use mlxbatch::models::{
    Adapter, GgufHeader, hub, read_config, read_generation_config, read_gguf_config, read_gguf_generation,
};
use mlxbatch::snapshot::{
    CacheMode, Contents, ReadError, Snapshot, SnapshotError, SnapshotOptions, merge, verify,
};
use mlxbatch::text::{ChatTemplate, RenderRequest, TextModel};
use serde_json::{Map, json};
use xxhash_rust::xxh3::xxh3_128;

/// Size of the files that an index is put into.
pub const CACHE_FILE_BYTES: usize = 128 << 10;

const MAX_LINE_BYTES: usize = 2000;

const BLOCK: usize = 4096;
/// Where an index is put: behind the extents, which are zeros.
const INDEX: usize = CACHE_FILE_BYTES - (16 << 10);
const MAGIC: &[u8; 16] = b"\x89mlxbatch\r\n\x1a\n\0\0\0";

/// A folder for one file at a time, in memory where there is such a folder: syncing costs nothing there.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self(folder.expect("a temporary folder can be made"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).expect("there is room for a small file");
        path
    }
}

/// The file that some input stands for. Checksums are set right: no mutation would ever come past them.
///
/// The first byte says what follows: 0 the beginning of a file, 1 an index of format version 1, 3 one of
/// version 2, anything else a whole file as it is.
pub fn cache_file_of(input: &[u8]) -> Vec<u8> {
    let Some((&kind, bytes)) = input.split_first() else { return Vec::new() };
    let mut file = vec![0; CACHE_FILE_BYTES];
    match kind {
        0 => {
            let num_bytes = bytes.len().min(CACHE_FILE_BYTES);
            file[..num_bytes].copy_from_slice(&bytes[..num_bytes]);
            put_sum(&mut file, 0, 20);
            for root in [BLOCK, 2 * BLOCK] {
                put_index_sum(&mut file, root);
                put_sum(&mut file, root, 48);
            }
        }
        1 | 3 => {
            let num_bytes = bytes.len().min(CACHE_FILE_BYTES - INDEX);
            file[..16].copy_from_slice(MAGIC);
            file[16] = if kind == 1 { 1 } else { 2 };
            put_sum(&mut file, 0, 20);
            file[INDEX..INDEX + num_bytes].copy_from_slice(&bytes[..num_bytes]);
            let numbers = [1, INDEX as u64, num_bytes as u64, CACHE_FILE_BYTES as u64];
            for (place, number) in file[2 * BLOCK..].chunks_exact_mut(8).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes());
            }
            put_index_sum(&mut file, 2 * BLOCK);
            put_sum(&mut file, 2 * BLOCK, 48);
        }
        _ => return bytes.to_vec(),
    }
    file
}

/// Puts the checksum of a block's first bytes behind them.
fn put_sum(file: &mut [u8], block: usize, num_bytes: usize) {
    let sum = xxh3_128(&file[block..block + num_bytes]).to_le_bytes();
    file[block + num_bytes..block + num_bytes + 16].copy_from_slice(&sum);
}

/// Puts the checksum of the index that a root names into the root, if there can be such an index.
fn put_index_sum(file: &mut [u8], root: usize) {
    let number = |place: usize| {
        let bytes = file[root + place * 8..][..8].try_into().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let range = number(1).zip(number(2)).and_then(|(start, num)| Some(start..start.checked_add(num)?));
    if let Some(sum) = range.and_then(|range| file.get(range)).map(xxh3_128) {
        file[root + 32..root + 48].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Opens a cache file, reads all that it says it has, saves into it and merges it with itself.
pub fn cache_file(folder: &Folder, input: &[u8]) {
    let path = folder.file("cache.bin", &cache_file_of(input));
    let Ok(contents) = Contents::read(&path) else { return };
    // Damaged extents are a finding, not a failure.
    let verified = verify(&path, |_| {}).expect("what was read once is read again");
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: None };
    let identify = |_: &[_]| Ok::<_, SnapshotError>(contents.identity.clone());
    let mut snapshot = Snapshot::open(&path, options, identify).expect("what was read once is opened");
    let mut bytes = Vec::new();
    let mut prompt = Vec::new();
    for entry in &contents.entries {
        prompt.truncate(entry.end - entry.tokens.len());
        prompt.extend(&entry.tokens);
        for found in snapshot.find(&prompt) {
            assert_eq!(found.piece.tokens().len(), found.tokens().len(), "a piece is as long as its tokens");
            match snapshot.read(&found.piece, &mut bytes) {
                Ok(()) => {}
                Err(ReadError::Damaged(extent)) => {
                    assert!(verified.damaged.contains(&extent.offset));
                    snapshot.drop_damaged(extent).expect("what was found can be dropped");
                    break;
                }
                Err(error) => panic!("{error}"),
            }
            assert!(found.piece.extents().iter().all(|extent| !verified.damaged.contains(&extent.offset)));
        }
    }
    let mut saving = snapshot.begin_save().expect("a file that opens can be saved to");
    let place = Place { parent: None, tokens: &[7_000_001, 7_000_002], tier: Tier::User };
    let export = |range: std::ops::Range<usize>, bytes: &mut Vec<u8>| {
        bytes.extend(range.map(|token| token as u8));
        Ok(())
    };
    match saving.add(place, export) {
        Ok(_) => {
            saving.publish().expect("there is room");
            let after = Contents::read(&path).expect("what was saved opens");
            assert_eq!(after.num_damaged, 0, "a save leaves nothing that makes no sense");
        }
        // The file's KV has other planes than one byte a token.
        Err(SnapshotError::Export(_)) => {}
        Err(error) => panic!("{error}"),
    }
    let merged = path.with_extension("merged");
    merge(&[&path, &path], &merged).expect("a file can be merged with itself");
    fs::remove_file(merged).expect("it was made");
}

/// Reads requests as a run does; each line that is not blank is a request or a failed line.
pub fn jsonl_reader(folder: &Folder, input: &[u8]) {
    let path = Inputs::from(InputPath::File(folder.file("in.jsonl", input)));
    let served_model = Some("model".to_owned());
    let options = ReaderOptions { max_line_bytes: MAX_LINE_BYTES, served_model, ..ReaderOptions::default() };
    let mut reader = match RequestReader::open(&path, options) {
        Ok(reader) => reader,
        // Its first bytes are those of another kind of file.
        Err(BatchError::ForeignInput { .. }) => return,
        Err(error) => panic!("the file is there: {error}"),
    };
    let mut num_items = 0;
    loop {
        let item = reader.poll_request(std::time::Duration::ZERO).expect("a file can be read");
        match item {
            NextRequest::Request(request) => assert_eq!(request.head.index, num_items),
            NextRequest::Failed(failed) => {
                assert_eq!(failed.head.index, num_items);
                assert!(!failed.error.message().is_empty());
            }
            NextRequest::Pending => panic!("a file never makes one wait"),
            NextRequest::End => break,
        }
        num_items += 1;
    }
    assert_eq!(reader.num_requests(), num_items);
    // Of a line beyond the limit it is not known whether it is blank.
    if input.split(|byte| *byte == b'\n').all(|line| line.len() < MAX_LINE_BYTES) {
        assert_eq!(
            count_requests(&path, &ReaderOptions::default()).expect("the file is there"),
            Some(num_items)
        );
    }
}

/// The model whose other files are sound where one is not.
const MODEL: &str = "fixtures/tiny-llama";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL).join(name)
}

fn load(spec: &mlxbatch::models::ModelSpec, weights: &WeightSource) {
    if let Err(error) = LoadedModel::load(spec, weights, ComputeDevice::current(), ComputeDtype::Float32) {
        assert!(!error.to_string().is_empty());
    }
}

/// Reads a GGUF file's header, and what it says of a model, as far as it says anything.
pub fn gguf(folder: &Folder, input: &[u8]) {
    let path = folder.file("model.gguf", input);
    let Ok(header) = GgufHeader::read(&path) else { return };
    for tensor in header.tensors() {
        let end = tensor.offset_bytes.checked_add(tensor.num_bytes);
        assert!(end.is_some_and(|end| end <= input.len() as u64), "{tensor:?} is not in the file");
    }
    let _ = read_gguf_generation(&header);
    let _ = TextModel::from_gguf(&header);
    if let Ok(config) = read_gguf_config(&header) {
        load(&config.spec, &WeightSource::Gguf(path));
    }
}

/// Reads weights, for a model that most of them are not of.
pub fn safetensors(folder: &Folder, input: &[u8]) {
    let path = folder.file("model.safetensors", input);
    let spec = read_config(&fixture("config.json")).expect("the fixture is sound");
    load(&spec, &WeightSource::Safetensors(vec![path]));
}

/// Reads an adapter of which one file is this, by its first byte, and the other a fixture's; loads the model with it.
pub fn adapter(folder: &Folder, input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let (base, fixture, file) = match kind {
        b'm' => ("tiny-llama", "llama-qv", "adapter_config.json"),
        b'w' => ("tiny-llama", "llama-qv", "adapters.safetensors"),
        b'f' => ("tiny-llama", "llama-full", "adapters.safetensors"),
        b'b' => ("tiny-qwen2", "qwen2-peft-bias", "adapter_model.safetensors"),
        _ => ("tiny-qwen2", "qwen2-peft-dora", "adapter_config.json"),
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for entry in fs::read_dir(fixtures.join("adapters").join(fixture)).expect("the fixture is there") {
        let entry = entry.expect("an entry can be read");
        fs::copy(entry.path(), folder.0.path().join(entry.file_name())).expect("there is room");
    }
    folder.file(file, bytes);
    let spec = read_config(&fixtures.join(base).join("config.json")).expect("the fixture is sound");
    match Adapter::read(folder.0.path(), &spec) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(adapter) => {
            let weights = WeightSource::Safetensors(vec![fixtures.join(base).join("model.safetensors")]);
            let used = UsedAdapter { adapter: &adapter, is_fused: bytes.len() % 2 == 0 };
            let (device, dtype) = (ComputeDevice::current(), ComputeDtype::Float32);
            if let Err(error) = LoadedModel::load_adapted(&spec, &weights, Some(used), device, dtype) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

/// Reads one text as each of the configurations that a model has.
pub fn config(folder: &Folder, input: &[u8]) {
    let _ = read_config(&folder.file("config.json", input));
    folder.file("generation_config.json", input);
    let _ = read_generation_config(folder.0.path());
}

/// Loads a tokenizer with these settings, chat template included, and encodes with it.
pub fn tokenizer_config(folder: &Folder, input: &[u8]) {
    let tokenizer = folder.0.path().join("tokenizer.json");
    if !tokenizer.exists() {
        fs::copy(fixture("tokenizer.json"), tokenizer).expect("there is room");
    }
    folder.file("tokenizer_config.json", input);
    let Ok(model) = TextModel::from_folder(folder.0.path()) else { return };
    let _ = model.encode_prompt("A boat <s> a\u{301}", true);
    let messages = [json!({"role": "user", "content": "Hi"})];
    let extra = Map::new();
    let request =
        RenderRequest { messages: &messages, tools: None, add_generation_prompt: true, extra: &extra };
    let _ = model.encode_chat(&request);
}

/// Compiles a chat template and renders conversations by it.
pub fn template(_: &Folder, input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(template) = ChatTemplate::from_text("fuzz", text, Map::new()) else { return };
    let messages = [
        json!({"role": "system", "content": "Be brief"}),
        json!({"role": "user", "content": "Hi"}),
        json!({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "c",
            "function": {"name": "f", "arguments": {"a": [1, 2.5, null]}}}]}),
        json!({"role": "tool", "tool_call_id": "c", "content": "done"}),
    ];
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let extra = Map::from_iter([("enable_thinking".to_owned(), json!(true))]);
    for num_messages in [2, 4] {
        let request = RenderRequest {
            messages: &messages[..num_messages],
            tools: (num_messages == 4).then_some(&tools),
            add_generation_prompt: true,
            extra: &extra,
        };
        let _ = template.render_whole(&request);
    }
}

/// Reads what a hub says a repository holds.
pub fn hub_listing(_: &Folder, input: &[u8]) {
    let _ = hub::is_listing(&String::from_utf8_lossy(input));
}
