//! What flags accept and refuse.

use super::*;

fn parse(arguments: &[&str]) -> Result<RunArgs, String> {
    let all = ["mlxbatch", "run", "in.jsonl", "-o", "out.jsonl"].iter().chain(arguments);
    match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
        Some(Command::Run(run)) => Ok(*run),
        other => panic!("`run` was parsed as {other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn flags_are_absent_unless_given() {
    let run = parse(&[]).expect("the shortest run");
    assert_eq!(run.generation.to_params(), RequestParams::default());
    assert_eq!(run.compute.batch_size, DEFAULT_BATCH_SIZE);
    assert_eq!(run.compute.dtype, DtypeArg::Auto);
    assert_eq!(
        (run.input, run.output),
        (vec![InputPath::File("in.jsonl".into())], OutputPath::File("out.jsonl".into()))
    );
}

#[test]
fn a_dash_is_a_standard_stream() {
    let cli = Cli::try_parse_from(["mlxbatch", "run", "-", "-o", "-"]).expect("dashes");
    let Some(Command::Run(run)) = cli.command else { panic!("not a run") };
    assert_eq!((run.input, run.output), (vec![InputPath::Stdin], OutputPath::Stdout));
}

#[test]
fn stops_add_up_and_may_begin_with_a_hyphen() {
    let run = parse(&["--stop", "---", "--stop", "\n\n", "--temperature", "0.5"]).expect("two stops");
    let params = run.generation.to_params();
    assert_eq!(params.stop, Some(vec!["---".into(), "\n\n".into()]));
    assert_eq!(params.temperature, Some(0.5));
}

#[test]
fn values_out_of_range_say_what_is_wanted() {
    for (flag, value, wanted) in [
        ("--temperature", "-1", "from 0 to 2"),
        ("--temperature", "NaN", "from 0 to 2"),
        ("--temperature", "warm", "from 0 to 2"),
        ("--top-p", "1.5", "from 0 to 1"),
        ("--top-p", "0", "above 0"),
        ("--min-p", "-0.1", "from 0 to 1"),
        ("--top-k", "-1", "0 or more"),
        ("--max-tokens", "0", "1 or more"),
        ("--seed", "1.5", "whole number"),
        ("--repetition-penalty", "0", "from 0.01 to 100"),
        ("--presence-penalty", "-2.5", "from -2 to 2"),
        ("--frequency-penalty", "much", "from -2 to 2"),
        ("--min-tokens", "-1", "0 or more"),
        ("--stop", "", "empty"),
        ("--batch-size", "0", "from 1 to 4096"),
        ("--prefill-chunk", "9999999", "from 1 to 1048576"),
        ("--dtype", "int8", "bf16"),
        ("--model", "", "hub repository"),
    ] {
        let error = parse(&[flag, value]).expect_err("out of range");
        assert!(error.contains(wanted) && error.contains(flag), "{flag} {value}: {error}");
    }
}

#[test]
fn a_negative_seed_is_a_seed() {
    assert_eq!(parse(&["--seed", "-1"]).map(|run| run.generation.seed), Ok(Some(u64::MAX)));
}

#[test]
fn the_help_names_the_default_it_cannot_print_itself() {
    let help =
        Cli::command().find_subcommand_mut("run").expect("there is one").render_long_help().to_string();
    assert!(help.contains(&format!("else {DEFAULT_MAX_TOKENS}]")));
    assert!(help.contains("130") && help.contains("Exit codes"));
}
