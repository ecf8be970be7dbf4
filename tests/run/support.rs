//! A folder to work in, the command with its usual arguments, and the parts of an output line.
//!
//! Owns nothing that is checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use jsonschema::Validator;
use serde_json::Value;
use tempfile::TempDir;

/// The model that most tests ask.
pub const MODEL: &str = "tiny-llama";

/// A folder of a test's own, in which the command runs.
pub struct Desk(TempDir);

impl Desk {
    /// A folder with these bytes as its `in.jsonl`.
    pub fn with_input(input: impl AsRef<[u8]>) -> Self {
        let desk = Self(tempfile::tempdir().expect("a temporary folder can be made"));
        desk.write("in.jsonl", input);
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("there is room for a small file");
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("the file is there");
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file is there and UTF-8")
    }

    /// Names in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the folder is there");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry can be read").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Copies a model of `fixtures/` into `model/`.
    pub fn copy_model(&self, fixture: &str) -> PathBuf {
        self.copy_folder(fixture, "model")
    }

    /// Copies a fixture's folder here.
    pub fn copy_folder(&self, fixture: &str, name: &str) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir(&folder).expect("there is no such folder yet");
        for entry in fs::read_dir(fixture_path(fixture)).expect("the fixture is there") {
            let entry = entry.expect("an entry can be read");
            fs::copy(entry.path(), folder.join(entry.file_name())).expect("there is room");
        }
        folder
    }

    /// Changes one field of a JSON file; null removes it.
    pub fn set_field(&self, file: &str, field: &str, value: Value) {
        let mut config: Value = serde_json::from_str(&self.read(file)).expect("the file is JSON");
        let fields = config.as_object_mut().expect("the file is an object");
        match value {
            Value::Null => drop(fields.remove(field)),
            value => drop(fields.insert(field.to_owned(), value)),
        }
        self.write(file, config.to_string());
    }

    /// `mlxbatch run in.jsonl -o out.jsonl` with the usual model.
    pub fn run(&self) -> Command {
        self.run_with(fixture_path(MODEL))
    }

    /// The same with another model.
    pub fn run_with(&self, model: impl AsRef<Path>) -> Command {
        let mut command = self.bare();
        command.args(["run", "in.jsonl", "-o", "out.jsonl", "--model"]).arg(model.as_ref());
        command
    }

    /// The binary alone, in this folder.
    pub fn bare(&self) -> Command {
        Command::from_std(self.std_command())
    }

    /// The binary alone, under limits that a shell sets.
    pub fn limited(&self, limits: &str) -> Command {
        let mut command = self.program("sh".as_ref());
        command.args(["-c", &format!("{limits}; exec \"$@\""), "sh"]);
        command.arg(assert_cmd::cargo::cargo_bin("mlxbatch"));
        Command::from_std(command)
    }

    /// Runs `mlxbatch run in.jsonl -o out.jsonl` with a model, under limits that a shell sets.
    pub fn run_under(&self, limits: &str, model: &Path) -> std::process::Output {
        let mut command = self.limited(limits);
        command.args(["run", "in.jsonl", "-o", "out.jsonl", "--model"]).arg(model);
        command.output().expect("a shell starts")
    }

    /// Starts `mlxbatch run` with these arguments after the model and pipes around it.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.std_command();
        command.args(["run", "--model"]).arg(fixture_path(MODEL)).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary starts")
    }

    fn std_command(&self) -> std::process::Command {
        self.program(&assert_cmd::cargo::cargo_bin("mlxbatch"))
    }

    /// A program in this folder, without what the environment would have it do otherwise.
    fn program(&self, program: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.current_dir(self.0.path());
        for name in [
            "MLXBATCH_MODEL",
            "NO_COLOR",
            "HF_HOME",
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "CI",
            "RANK",
            "CI_NODE_INDEX",
            "GITHUB_STEP_SUMMARY",
            "OPENBLAS_CORETYPE",
        ] {
            command.env_remove(name);
        }
        // Tests run beside each other: threads of one would only wait for those of another.
        command.env("OPENBLAS_NUM_THREADS", "1");
        command
    }

    /// What `--report report.json` wrote, as its schema has it.
    pub fn report(&self) -> Value {
        let report = serde_json::from_str(&self.read("report.json")).expect("the report is JSON");
        check_schema(&REPORT, &report);
        report
    }

    /// The lines of `out.jsonl`, each of which its schema allows, where those of the input are no requests.
    pub fn output_lines(&self) -> Vec<Value> {
        let output = json_lines(&self.read("out.jsonl"));
        output.iter().for_each(|record| check_schema(&OUTPUT, record));
        output
    }

    /// The lines of `out.jsonl`, each of which its schema allows, as the other allows the input lines that were
    /// answered.
    pub fn output(&self) -> Vec<Value> {
        let output = json_lines(&self.read("out.jsonl"));
        let input = fs::read(self.path("in.jsonl")).unwrap_or_default();
        let input: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        for record in &output {
            check_schema(&OUTPUT, record);
            let number =
                record["id"].as_str().and_then(|id| id.strip_prefix("batch_req_")?.parse::<usize>().ok());
            let line = number.and_then(|number| input.get(number - 1));
            let answered = line.filter(|_| record["response"]["status_code"] == 200);
            if let Some(Ok(line)) = answered.map(|line| serde_json::from_slice(line)) {
                check_schema(&INPUT, &line);
            }
        }
        output
    }
}

static INPUT: LazyLock<Validator> = LazyLock::new(|| validator(&mlxbatch::batch::input_schema()));
static OUTPUT: LazyLock<Validator> = LazyLock::new(|| validator(&mlxbatch::batch::output_schema()));

static REPORT: LazyLock<Validator> = LazyLock::new(|| validator(&mlxbatch::batch::report_schema()));

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::new(schema).expect("it is a schema")
}

fn check_schema(validator: &Validator, line: &Value) {
    let problems: Vec<String> =
        validator.iter_errors(line).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(problems.is_empty(), "not by the schema, {problems:?}: {line}");
}

/// Where a model of `fixtures/` is.
pub fn fixture_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Parses lines, each of which must be whole.
pub fn json_lines(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is cut: {text}");
    text.lines().map(|line| serde_json::from_str(line).expect("every output line is JSON")).collect()
}

/// The `custom_id` of an output line.
pub fn id_of(line: &Value) -> &str {
    line["custom_id"].as_str().expect("every output line has an id")
}

/// The text of an answer, of a chat or of a raw completion.
pub fn text_of(line: &Value) -> &str {
    let choice = &line["response"]["body"]["choices"][0];
    let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
    text.unwrap_or_else(|| panic!("no answer in {line}"))
}

/// Whether a line was answered, and if not the code of its error.
pub fn code_of(line: &Value) -> &str {
    let response = &line["response"];
    match (response["status_code"].as_u64(), line["error"]["code"].as_str()) {
        (Some(200), None) => "ok",
        (Some(400..=499), None) => response["body"]["error"]["code"].as_str().expect("an error has a code"),
        (None, Some(code)) => code,
        _ => panic!("neither an answer nor an error: {line}"),
    }
}

/// The message of a line's error.
pub fn message_of(line: &Value) -> &str {
    let message = &line["response"]["body"]["error"]["message"];
    message.as_str().or(line["error"]["message"].as_str()).expect("an error has a message")
}

/// Waits until something has come about; a test that waits in vain fails.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
