//! Man pages follow the flags, and the fields of input lines.
//!
//! Owns generating the pages in `man/` from `cli` and from the tables of `batch`, and fails when they are stale. To bring them up
//! to date: `MLXBATCH_BLESS=1 cargo test --test docs`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use mlxbatch::batch::{SERVED, ignored_fields, refused_fields};
use mlxbatch::cli::{Cli, SECURITY};
use regex::Regex;

fn man_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("man")
}

/// Names and texts of all pages.
fn pages() -> Vec<(String, String)> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    add_pages("mlxbatch", &root, &mut pages);
    pages.push(input_page());
    pages
}

/// mlxbatch-input(5): what a line may say.
fn input_page() -> (String, String) {
    let mut roff = format!(
        ".TH \"MLXBATCH-INPUT\" \"5\" \"\" \"mlxbatch {}\" \"mlxbatch\"\n",
        env!("CARGO_PKG_VERSION")
    );
    roff += ".SH NAME\nmlxbatch\\-input \\- fields of the lines that mlxbatch answers\n";
    roff += ".SH DESCRIPTION\n";
    let paragraphs = [
        "Each line is one JSON object: {\"messages\": [...]} for a conversation, {\"prompt\": ...} for a raw completion, \
         or a line of the OpenAI Batch API, whose body holds these fields. A field that is null is absent. A value \
         out of range makes the line an error with status 400 that names the field and the range.",
        "A request's own parameters win over flags, flags over the model's generation_config.json. Where OpenAI's \
         API is silent, fields do what they do in vLLM.",
        "A line has one record, however many answers it asks for: the choices of the first prompt, then those of \
         the second. Choice k of a request with seed s is drawn as the first choice under seed s + k; without a seed \
         of its own, a request's random numbers follow from --seed, its id and the prompt's place in the list. If one \
         choice fails, the line is an error.",
        "A conversation is played turn by turn where it has several answers to be generated: assistant's messages \
         without content, anywhere but last. What the model says is put into them as it comes, and the next turn \
         begins with it, resuming from the cache. Parameters are those of each turn: max_tokens, stop and the like \
         hold for every answer, and with a seed of its own each turn is drawn as a line by itself would be. An \
         answer that was cut (finish_reason length) is gone on with all the same. The choice's message is that of \
         the last turn; turns beside it lists all of them, each with its finish_reason, logprobs and usage; the \
         record's usage is the sum. With n each choice plays a conversation of its own. A turn that fails, such as \
         by the length of the context, makes the line an error that names it, with the turns before it under turns.",
        "An answer that has to be something is that where its finish_reason is stop, unless a stop of the request's \
         own cut it, which stop_reason says; where it is length the answer was cut. It ends by itself where nothing \
         can follow, whatever min_tokens says. A schema or grammar that cannot be served makes the line an error \
         that says why, before anything is computed; `mlxbatch validate` finds it as well.",
        "The answer to a conversation is taken apart in the way its model writes: thinking becomes the message's \
         reasoning_content and is counted in usage.completion_tokens_details, calls of the request's tools become its \
         tool_calls with finish_reason \"tool_calls\"; malformed calls stay text. The way follows from the chat template, \
         --reasoning-parser and --tool-parser name another. What an answer has to be it is behind its thinking. Arguments \
         of calls that the model is free to make are as the model writes them and need not meet the tool's schema; those of \
         calls that tool_choice asks for do.",
        "A prompt's tokens whose log-probabilities are told are computed, also where they are cached; those before \
         logprob_start_len come from the cache as ever. All log-probabilities are of the model's own logits in \
         float32, before penalties, biases, temperature and filters.",
    ];
    roff += &paragraphs.map(roff_text).join("\n.PP\n");
    roff += "\n";
    for group in SERVED {
        roff += &format!(".SH \"{}\"\n", group.heading.to_uppercase());
        for field in group.fields {
            roff += &format!(".TP\n\\fB{}\\fR (\\fI{}\\fR)\n", roff_text(field.name), roff_text(field.takes));
            roff += &format!("{}\n", roff_text(field.summary));
        }
    }
    roff += ".SH REFUSED\nThese are known from other programs and would change the answer. They are refused but for values \
             that mean nothing.\n";
    for (name, reason) in refused_fields() {
        roff += &format!(".TP\n\\fB{}\\fR\n{}\n", roff_text(name), roff_text(reason));
    }
    let ignored: Vec<String> = ignored_fields().map(roff_text).collect();
    roff += &format!(
        ".SH IGNORED\nThese change no answer: {}. Fields that are in no list here are warned of.\n",
        ignored.join(", ")
    );
    roff += ".SH \"SEE ALSO\"\n\\fBmlxbatch\\-run\\fR(1)\n";
    ("mlxbatch-input.5".to_owned(), roff)
}

fn roff_text(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('-', "\\-").replace('\'', "\\(aq");
    // A line that begins with a dot would be a request to the formatter.
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

/// Adds the page of a command and of those below it.
fn add_pages(name: &str, command: &clap::Command, pages: &mut Vec<(String, String)>) {
    pages.push(page(name.to_owned(), command.clone().version(env!("CARGO_PKG_VERSION"))));
    for below in command.get_subcommands() {
        add_pages(&format!("{name}-{}", below.get_name()), below, pages);
    }
}

fn page(name: String, command: clap::Command) -> (String, String) {
    let has_subcommands = command.has_subcommands();
    let ending = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // No date: the pages change when the flags do and not with the calendar.
    let man = clap_mangen::Man::new(command.after_help(""))
        .title(name.to_uppercase())
        .date("")
        .source(concat!("mlxbatch ", env!("CARGO_PKG_VERSION")))
        .manual("mlxbatch");
    let mut text = Vec::new();
    man.render_title(&mut text).unwrap();
    man.render_name_section(&mut text).unwrap();
    man.render_synopsis_section(&mut text).unwrap();
    man.render_description_section(&mut text).unwrap();
    man.render_options_section(&mut text).unwrap();
    if has_subcommands {
        man.render_subcommands_section(&mut text).unwrap();
    }
    let mut text = String::from_utf8(text).expect("help is UTF-8");
    text += &literal_sections(&ending);
    if name == "mlxbatch" {
        let paragraphs: Vec<String> = SECURITY.iter().copied().map(roff_text).collect();
        text += &format!(".SH SECURITY\n{}\n", paragraphs.join("\n.PP\n"));
    }
    (format!("{name}.1"), text)
}

/// Turns the text after the help, sections of a heading and indented lines, into manual sections
/// whose lines are kept as they are: examples must not be wrapped.
fn literal_sections(text: &str) -> String {
    let mut roff = String::new();
    for section in text.split("\n\n").filter(|section| !section.is_empty()) {
        let (heading, lines) = section.split_once('\n').expect("a heading stands over its lines");
        let heading = heading.trim_end_matches(':').to_uppercase().replace("EXIT CODES", "EXIT STATUS");
        roff += &format!(".SH \"{heading}\"\n.nf\n");
        for line in lines.lines() {
            let line = line.strip_prefix("  ").unwrap_or(line);
            roff += &line.replace('\\', "\\\\").replace('-', "\\-").replace('\'', "\\(aq");
            roff.push('\n');
        }
        roff += ".fi\n";
    }
    roff
}

#[test]
fn man_pages_are_up_to_date() {
    let pages = pages();
    if env::var_os("MLXBATCH_BLESS").is_some() {
        fs::create_dir_all(man_folder()).unwrap();
        for (name, text) in &pages {
            fs::write(man_folder().join(name), text).unwrap();
        }
    }
    for (name, text) in &pages {
        let committed = fs::read_to_string(man_folder().join(name)).unwrap_or_default();
        assert!(
            committed == *text,
            "man/{name} is stale; run `MLXBATCH_BLESS=1 cargo test --test docs` and commit the result"
        );
    }
    let mut committed: Vec<_> = fs::read_dir(man_folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    committed.sort();
    let mut generated: Vec<_> = pages.into_iter().map(|(name, _)| name).collect();
    generated.push(PIPELINES.to_owned());
    generated.sort();
    assert_eq!(committed, generated, "man/ holds a page of a command that is gone");
}

/// Written by hand.
const PIPELINES: &str = "mlxbatch-pipelines.7";

/// The commands in a page's examples, where what an engine fills in is 1.
fn commands_of(roff: &str) -> Vec<Vec<String>> {
    let text = roff.replace("\\-", "-").replace("\\(aq", "'");
    let examples = text.split(".nf\n").skip(1).filter_map(|rest| rest.split(".fi\n").next());
    let filled_in = Regex::new(r"\$\{\{[^}]*\}\}|\$\w+|\{\}|\bauto\b").expect("an expression");
    let command = Regex::new(r"mlxbatch (?:run|plan|merge|cache|compare) [^)\n]*").expect("an expression");
    let mut commands = Vec::new();
    for example in examples {
        let example = filled_in.replace_all(example, "1");
        for found in command.find_iter(&example) {
            // What is left over of the quotes around a whole command belongs to the shell.
            let mut words = Vec::new();
            let (mut word, mut quote) = (String::new(), None);
            for letter in found.as_str().chars().chain([' ']) {
                match (letter, quote) {
                    ('\'' | '"', None) => quote = Some(letter),
                    (letter, Some(open)) if letter == open => quote = None,
                    (' ', None) => {
                        words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()))
                    }
                    (letter, _) => word.push(letter),
                }
            }
            words.extend(Some(word.trim().to_owned()).filter(|word| !word.is_empty()));
            commands.push(words);
        }
    }
    commands
}

#[test]
fn the_commands_of_the_pipelines_page_are_ones_and_the_page_is_of_this_version() {
    let page = fs::read_to_string(man_folder().join(PIPELINES)).expect("the page is there");
    assert!(
        page.contains(&format!("mlxbatch {}", env!("CARGO_PKG_VERSION"))),
        "the page is of another version"
    );
    let commands = commands_of(&page);
    assert!(commands.len() >= 12, "{commands:?}");
    for words in commands {
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{words:?}: {error}");
        }
    }
    for script in ["shards_parallel.sh", "shards_slurm.sh", "shards_ray.py"] {
        assert!(page.contains(script) && Path::new("scripts").join(script).exists(), "{script}");
    }
}

#[test]
fn every_page_tells_the_exit_codes_and_every_flag() {
    for (name, text) in pages() {
        let without =
            ["mlxbatch-completions.1", "mlxbatch-models.1", "mlxbatch-schema.1", "mlxbatch-input.5"];
        if !without.contains(&name.as_str()) {
            assert!(text.contains("EXIT STATUS") && text.contains("cannot be understood"), "{name}");
        }
    }
    let run = pages().into_iter().find(|(name, _)| name == "mlxbatch-run.1").expect("run has a page").1;
    let mut root = Cli::command();
    root.build();
    for flag in
        root.find_subcommand("run").expect("there is one").get_arguments().filter_map(|arg| arg.get_long())
    {
        assert!(run.contains(&flag.replace('-', "\\-")), "mlxbatch-run.1 lacks --{flag}");
    }
}
