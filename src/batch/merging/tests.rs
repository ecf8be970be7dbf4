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
            let (status_code, body) = match line.is_multiple_of(4) {
                true => (500, json!({"error": {"code": "timeout", "message": "late"}})),
                false => (200, json!({"choices": []})),
            };
            let response = json!({"status_code": status_code,
                "request_id": format!("{REQUEST_ID_PREFIX}{}", hex(&head.digest)), "body": body});
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

/// They were said to be no text.
#[test]
fn of_a_shard_that_is_published_in_another_form_the_records_are_joined() {
    let desk = Desk::new();
    for (from, to) in [
        (desk.path("out.1.jsonl"), desk.path("out.1.csv.gz.records")),
        (manifest_path(&desk.path("out.1.jsonl")), manifest_path(&desk.path("out.1.csv.gz.records"))),
    ] {
        fs::rename(from, to).expect("it is there");
    }
    fs::write(desk.path("out.1.csv.gz"), b"\x1f\x8b\x08\xff").expect("there is room");
    let names = ["out.1.csv.gz", "out.2.jsonl", "out.3.jsonl"];
    let merged = desk.merge_with(&names, &MergeOptions::default());
    assert_eq!(merged, Ok(Merged { num_results: NUM_LINES, num_failed: 2 }));
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

/// Whatever was done to a record, its `id` and the two fields beside it were all that was looked at.
#[test]
fn records_that_were_changed_are_named_by_file_and_line() {
    let desk = Desk::new();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let text = desk.records(&[2, 5, 8]);
        let mut lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
        change(&mut lines[1]);
        desk.write("out.2.jsonl", &lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        desk.refused(&ALL, &MergeOptions::default())
    };
    let remove = |name: &'static str| {
        move |record: &mut serde_json::Value| drop(record.as_object_mut().expect("one").shift_remove(name))
    };
    for (told, change) in [
        ("missing field `custom_id`", &remove("custom_id") as &dyn Fn(&mut serde_json::Value)),
        ("missing field `id`", &remove("id")),
        ("neither a response nor an error", &remove("response")),
        ("invalid type: null, expected a string", &|record| record["custom_id"] = json!(null)),
        ("invalid type: integer", &|record| record["custom_id"] = json!(7)),
        ("its id batch_x names no line", &|record| record["id"] = json!("batch_x")),
        ("a response and an error", &|record| record["error"] = json!({"code": "a", "message": "b"})),
        ("its body is not what status 200 comes with", &|record| record["response"]["body"] = json!({})),
        ("its body is not what status 500 comes with", &|record| {
            record["response"]["status_code"] = json!(500)
        }),
        ("missing field `body`", &|record| {
            record["response"] = json!({"status_code": 200, "request_id": "req_x"});
        }),
    ] {
        let message = with(change);
        assert!(message.starts_with("out.2.jsonl:2 is no result of mlxbatch: "), "{message}");
        assert!(message.contains(told) && message.contains("run its shard again"), "{told}: {message}");
    }
    let long = with(&|record| record["id"] = json!("x".repeat(1 << 20)));
    assert!(long.len() < 10_000 && long.contains("names no line"), "{}", long.len());
}

/// What is in a text that nobody looks at has to be a text all the same.
#[test]
fn what_is_no_text_or_no_json_is_no_record() {
    let desk = Desk::new();
    let whole = desk.records(&[2, 5, 8]);
    for (bytes, told) in [
        (&b"\xff"[..], "it is not valid UTF-8 at byte"),
        (&b"\""[..], "it is not valid JSON"),
        (&b"{\"custom_id\": \"x\", "[..], "it is not valid JSON"),
    ] {
        let lines: Vec<&str> = whole.lines().collect();
        let at = lines[1].find("choices").expect("it has them") + 3;
        let mut text = [lines[0].as_bytes(), b"\n", &lines[1].as_bytes()[..at], bytes].concat();
        text.extend([&lines[1].as_bytes()[at..], b"\n", lines[2].as_bytes(), b"\n"].concat());
        fs::write(desk.path("out.2.jsonl"), text).expect("there is room");
        let message = desk.refused(&ALL, &MergeOptions::default());
        assert!(message.starts_with("out.2.jsonl:2 is no result") && message.contains(told), "{message}");
    }
    desk.write("out.2.jsonl", &whole.replacen('\n', "\n\n", 1));
    assert!(desk.refused(&ALL, &MergeOptions::default()).starts_with("out.2.jsonl:2 is no result"));
}

#[test]
fn no_two_answers_have_one_custom_id_and_each_has_that_of_its_line() {
    let desk = Desk::new();
    let lines: String = (1..=NUM_LINES)
        .map(|line| format!("{{\"custom_id\": \"id{line}\", \"prompt\": \"{line}\"}}\n"))
        .collect();
    desk.write("in.jsonl", &lines);
    for number in 1..=3 {
        desk.write(&format!("out.{number}.jsonl"), &desk.records(&[number, number + 3, number + 6]));
    }
    assert!(desk.merge().is_ok());
    let inputs = MergeOptions { inputs: Some(desk.inputs()), is_forced: false };
    assert!(desk.merge_with(&ALL, &inputs).is_ok());
    let with = |from: &str, to: &str, options: &MergeOptions| {
        desk.write("out.2.jsonl", &desk.records(&[2, 5, 8]).replace(from, to));
        desk.refused(&ALL, options)
    };
    let double = with("\"id5\"", "\"id2\"", &MergeOptions::default());
    assert!(
        double.starts_with("out.2.jsonl:2 and out.2.jsonl:1 answer two lines with one custom_id, \"id2\""),
        "{double}"
    );
    let double = with("\"id2\"", "\"id3\"", &MergeOptions::default());
    assert!(double.starts_with("out.3.jsonl:1 and out.2.jsonl:1 answer two lines"), "{double}");
    let other = with("\"id5\"", "\"id55\"", &inputs);
    assert!(
        other.starts_with(
            "out.2.jsonl:2 has the custom_id \"id55\", and in.jsonl:5, whose result it is, \"id5\""
        ),
        "{other}"
    );
    // Nor without their manifests.
    for name in ALL {
        fs::rename(manifest_path(&desk.path(name)), desk.path(&format!("{name}.kept"))).expect("it is there");
    }
    assert_eq!(with("\"id5\"", "\"id55\"", &inputs), other);
    for name in ALL {
        fs::rename(desk.path(&format!("{name}.kept")), manifest_path(&desk.path(name))).expect("it is there");
    }
    // A line that is an error may share its id with another.
    desk.write("out.1.jsonl", &desk.records(&[1, 4, 7]).replace("\"id4\"", "\"id1\""));
    desk.write("out.2.jsonl", &desk.records(&[2, 5, 8]));
    assert!(desk.merge().is_ok());
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
