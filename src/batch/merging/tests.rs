//! Shards that make a whole, and all that keeps them from it.

use serde_json::json;

use super::*;
use crate::batch::paths::InputPath;
use crate::batch::shards::{Shard, ShardFacts};
use crate::batch::writer::{Manifest, partial_path};

const NUM_LINES: u64 = 9;

/// Results of nine lines in three shards, the way runs leave them.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().expect("a temporary folder can be made"));
        let lines: String = (1..=NUM_LINES).map(|line| format!("{{\"prompt\": \"{line}\"}}\n")).collect();
        desk.write("in.jsonl", &lines);
        for number in 1..=3 {
            desk.write(&format!("out.{number}.jsonl"), &desk.records(&[number, number + 3, number + 6]));
            desk.set_manifest(number, |_| {});
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("there is room");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("it is there")
    }

    fn inputs(&self) -> Inputs {
        InputPath::File(self.path("in.jsonl")).into()
    }

    /// As a run writes them; every fourth is an error.
    fn records(&self, lines: &[u64]) -> String {
        let mut reader = RequestReader::open(&self.inputs(), ReaderOptions::default()).expect("it is there");
        let heads: Vec<RequestHead> = std::iter::from_fn(|| reader.next_request().expect("it can be read"))
            .map(|read| read.expect("all are requests").head)
            .collect();
        let record = |line: &u64| {
            let head = &heads[*line as usize - 1];
            let response = json!({"status_code": if line.is_multiple_of(4) { 500 } else { 200 },
                "request_id": format!("{REQUEST_ID_PREFIX}{}", hex(&head.digest)), "body": {}});
            format!(
                "{}\n",
                json!({"id": format!("batch_req_{line}"), "custom_id": head.custom_id, "response": response, "error": null})
            )
        };
        lines.iter().map(record).collect()
    }

    fn set_manifest(&self, number: u64, change: impl Fn(&mut ShardFacts)) {
        let mut manifest = Manifest::default();
        manifest.say("--temperature", "0");
        let shard = Shard { number: number as u32, count: 3 };
        let (input, split) = ("aa".repeat(16), "bb".repeat(16));
        let mut facts = ShardFacts { shard, num_lines: 3, num_lines_of_all: NUM_LINES, input, split };
        change(&mut facts);
        manifest.set_shard(facts);
        self.write_manifest(&format!("out.{number}.jsonl"), &manifest);
    }

    fn write_manifest(&self, results: &str, manifest: &Manifest) {
        manifest.write(&manifest_path(&self.path(results)), self.0.path()).expect("there is room");
    }

    fn merge_with(&self, names: &[&str], options: &MergeOptions) -> Result<Merged, String> {
        let results: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        let output = OutputPath::File(self.path("out.jsonl"));
        merge(&results, &output, options)
            .map_err(|error| error.to_string().replace(&format!("{}/", self.0.path().display()), ""))
    }

    fn merge(&self) -> Result<Merged, String> {
        self.merge_with(&ALL, &MergeOptions::default())
    }

    /// Merging fails, and what was there stays.
    fn refused(&self, names: &[&str], options: &MergeOptions) -> String {
        self.write("out.jsonl", "older\n");
        let message = self.merge_with(names, options).expect_err("it is refused");
        assert_eq!(self.read("out.jsonl"), "older\n");
        message
    }
}

const ALL: [&str; 3] = ["out.2.jsonl", "out.3.jsonl", "out.1.jsonl"];

#[test]
fn shards_are_joined_in_the_order_of_the_input_and_errors_can_be_retried() {
    let desk = Desk::new();
    assert_eq!(desk.merge(), Ok(Merged { num_results: NUM_LINES, num_failed: 2 }));
    let all: Vec<u64> = (1..=NUM_LINES).collect();
    assert_eq!(desk.read("out.jsonl"), desk.records(&all));
    let manifest = Manifest::read(&manifest_path(&desk.path("out.jsonl"))).expect("it is left");
    assert_eq!(manifest.shard(), None);
    // The same held to the input, with manifests and without.
    let options = MergeOptions { inputs: Some(desk.inputs()), is_forced: false };
    assert!(desk.merge_with(&ALL, &options).is_ok());
    for name in ALL {
        fs::remove_file(manifest_path(&desk.path(name))).expect("it was there");
    }
    fs::remove_file(desk.path("out.jsonl")).expect("it was there");
    assert!(desk.merge_with(&ALL, &options).is_ok());
    assert_eq!(desk.read("out.jsonl"), desk.records(&all));
    assert!(!manifest_path(&desk.path("out.jsonl")).exists(), "what it was made with is not known");
}

#[test]
fn a_shard_of_no_lines_is_one_all_the_same() {
    let desk = Desk::new();
    desk.write("out.1.jsonl", &desk.records(&[1, 3, 4, 6, 7, 9]));
    desk.write("out.3.jsonl", "");
    desk.set_manifest(1, |facts| facts.num_lines = 6);
    desk.set_manifest(3, |facts| facts.num_lines = 0);
    assert_eq!(desk.merge().map(|merged| merged.num_results), Ok(NUM_LINES));
}

#[test]
fn what_is_no_whole_by_its_manifests_is_refused_with_what_to_do() {
    let default = MergeOptions::default();
    let desk = Desk::new();
    assert_eq!(
        desk.refused(&["out.1.jsonl", "out.3.jsonl"], &default),
        "of 3 shards, shard 2 is missing: name their results as well, or run what has not been run with --shard I/3"
    );
    assert!(desk.refused(&["out.1.jsonl", "out.1.jsonl"], &default).contains("named twice"));
    assert!(
        desk.refused(&["out.1.jsonl", "out.4.jsonl"], &default)
            .contains("cannot read the results out.4.jsonl")
    );
    desk.set_manifest(2, |facts| facts.shard.number = 1);
    assert!(desk.refused(&ALL, &default).contains("are both shard 1/3"));
    desk.set_manifest(2, |facts| facts.shard.count = 8);
    assert!(desk.refused(&ALL, &default).contains("is shard 2/8: they are parts of different runs"));
    desk.set_manifest(2, |facts| facts.input = "ee".repeat(16));
    assert!(desk.refused(&ALL, &default).contains("are of different inputs"));
    desk.set_manifest(2, |facts| facts.split = "ee".repeat(16));
    assert!(desk.refused(&ALL, &default).contains("split otherwise"));

    let facts =
        Manifest::read(&manifest_path(&desk.path("out.1.jsonl"))).expect("it is there").shard().cloned();
    let mut other = Manifest::default();
    other.say("--temperature", "0.7");
    other.set_shard(ShardFacts { shard: Shard { number: 2, count: 3 }, ..facts.expect("it is of a shard") });
    desk.write_manifest("out.2.jsonl", &other);
    let said =
        "out.2.jsonl was made otherwise than out.1.jsonl: --temperature was 0, is 0.7; --force joins them";
    assert!(desk.refused(&["out.1.jsonl", "out.2.jsonl", "out.3.jsonl"], &default).contains(said));
    let forced = MergeOptions { is_forced: true, ..default.clone() };
    assert!(desk.merge_with(&ALL, &forced).is_ok());

    desk.write_manifest("out.2.jsonl", &other.without_shard());
    assert!(
        desk.refused(&ALL, &default).contains("out.2.jsonl has the results of a whole run, not of a shard")
    );
    fs::remove_file(manifest_path(&desk.path("out.2.jsonl"))).expect("it was there");
    assert!(desk.refused(&ALL, &default).contains("out.2.jsonl.manifest cannot be read"));
    fs::write(partial_path(&desk.path("out.3.jsonl")), "").expect("there is room");
    assert!(desk.refused(&ALL, &default).contains("out.3.jsonl.partial is there: its run has not ended"));
}

#[test]
fn results_that_are_damaged_missing_or_double_are_named_by_file_and_line() {
    let default = MergeOptions::default();
    let desk = Desk::new();
    let with = |text: String| {
        desk.write("out.2.jsonl", &text);
        desk.refused(&ALL, &default)
    };
    let whole = desk.records(&[2, 5, 8]);
    assert!(with(whole[..whole.len() - 7].to_owned()).starts_with("out.2.jsonl:3 is cut off"));
    assert!(with(desk.records(&[2, 5])).starts_with("out.2.jsonl has 2 of the 3 results of shard 2/3"));
    assert!(
        with(desk.records(&[2, 8, 5]))
            .starts_with("out.2.jsonl:3 is the result of line 5, behind that of line 8")
    );
    assert!(
        with(desk.records(&[2, 5, 5])).starts_with("line 5 has two results: out.2.jsonl:2 and out.2.jsonl:3")
    );
    let double = with(desk.records(&[2, 5, 6]));
    assert!(double.contains("line 6 has two results") && double.contains("out.3.jsonl:2"), "{double}");
    assert!(with(desk.records(&[2]) + "{}\n").starts_with("out.2.jsonl:2 is no result of mlxbatch"));
    assert!(with(String::new()).starts_with("out.2.jsonl has 0 of the 3 results"));
}

#[test]
fn results_are_held_to_the_lines_of_the_input() {
    let desk = Desk::new();
    for name in ALL {
        fs::remove_file(manifest_path(&desk.path(name))).expect("it was there");
    }
    let options = MergeOptions { inputs: Some(desk.inputs()), is_forced: false };
    let missing = desk.refused(&["out.1.jsonl", "out.3.jsonl"], &options);
    assert!(missing.starts_with("in.jsonl:2 has no result, nor have 2 more lines"), "{missing}");
    let lines = desk.read("in.jsonl");
    desk.write("in.jsonl", &lines.replace("\"5\"", "\"x\""));
    let other = desk.refused(&ALL, &options);
    assert!(other.starts_with("out.2.jsonl:2 is not the result of in.jsonl:5"), "{other}");
    desk.write("in.jsonl", "{\"prompt\": \"1\"}\n");
    let none = desk.refused(&ALL, &options);
    assert!(none.starts_with("out.2.jsonl:1 is the result of line 2, which --input does not have"), "{none}");
}

#[test]
fn the_output_is_none_of_what_is_joined() {
    let desk = Desk::new();
    let results: Vec<PathBuf> = ALL.map(|name| desk.path(name)).to_vec();
    let error = merge(&results, &OutputPath::File(desk.path("out.3.jsonl")), &MergeOptions::default());
    assert!(error.expect_err("it is refused").to_string().contains("is one of the results"));
}
