//! Guides over a vocabulary of single bytes and a few longer tokens.
//!
//! Owns what constraints of each kind let through; whole answers of models are held to them in `tests/run`.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};

use super::*;

/// Ends an answer.
const END: u32 = 256;
/// Tokens of more than one byte.
const LONG: [&str; 4] = ["{\"", "\": ", "true", " a"];

fn compiler() -> Compiler {
    compiler_that(false)
}

fn compiler_that(drops_first_space: bool) -> Compiler {
    let mut vocabulary = Vocabulary { end_ids: vec![END], drops_first_space, ..Vocabulary::of_bytes() };
    vocabulary.tokens.push(Vocabulary::control("<|end|>"));
    vocabulary.tokens.extend(LONG.map(|token| token.as_bytes().to_vec()));
    Compiler::new(vocabulary).expect("the vocabulary is whole")
}

fn schema(schema: Value) -> Constraint {
    Constraint::Json { schema, options: JsonOptions::default() }
}

fn begin(compiler: &Compiler, constraint: Constraint) -> Result<Guide, GuideError> {
    compiler.pattern(Some(&Arc::new(constraint)), None)?.begin()
}

/// Whether an answer may be this text and nothing more.
fn allows(compiler: &Compiler, constraint: &Constraint, text: &str) -> bool {
    let mut guide = begin(compiler, constraint.clone()).expect("it can be served");
    for token in text.bytes().map(u32::from) {
        match guide.next(&[END], false).expect("it goes on") {
            Next::OneOf(allowed) if allowed.contains(token) => {
                _ = guide.accept(token).expect("it was allowed")
            }
            Next::Anything | Next::OneOf(_) | Next::Nothing => return false,
        }
    }
    match guide.next(&[END], false).expect("it goes on") {
        Next::OneOf(allowed) => allowed.contains(END),
        Next::Anything | Next::Nothing => true,
    }
}

fn tokens_allowed(guide: &mut Guide, end_ids: &[u32], is_early: bool) -> Vec<u32> {
    match guide.next(end_ids, is_early).expect("it goes on") {
        Next::OneOf(allowed) => allowed.iter().collect(),
        Next::Anything | Next::Nothing => Vec::new(),
    }
}

/// It was remembered against the constraint, which other lines may have, too.
#[test]
fn what_one_line_has_no_time_for_others_may_have() {
    let (compiler, constraint) = (compiler(), schema(json!({"type": "boolean"})));
    let begin = || begin(&compiler, constraint.clone());
    assert!(crate::deep::for_an_overdue_line(begin).is_err());
    assert!(begin().is_ok());
}

#[test]
fn each_kind_of_constraint_lets_through_what_it_describes() {
    let compiler = compiler();
    let choice = |texts: &[&str]| Constraint::Choice(texts.iter().map(ToString::to_string).collect());
    let odd = ["a\"b", "c\\d", "e\n\t", "\u{7f}", "\u{1}", "é🦀", "/x/", "$ref", "", "//"];
    let lark = "start: \"<\" WORD (\",\" WORD)* \">\"\nWORD: /[a-z]+/";
    let gbnf = "root ::= \"<\" word (\",\" word)* \">\"\nword ::= [a-z]+";
    for (constraint, allowed, forbidden) in [
        (
            Constraint::json_object(),
            vec!["{}", "{\"a\": [1, null]}", "{\"a\":\n  {}}"],
            vec!["[]", " {}", "{", ""],
        ),
        (schema(json!(true)), vec!["1", "\"x\"", "[]"], vec!["", "1 "]),
        (schema(json!({"type": "integer", "minimum": 3})), vec!["3", "44"], vec!["2", "3.5", "-4"]),
        (
            schema(json!({"type": "object", "properties": {"a": {"enum": ["x", 1.5]}}, "required": ["a"],
                          "additionalProperties": false})),
            vec!["{\"a\": \"x\"}", "{\"a\":1.5}"],
            vec!["{}", "{\"a\": 2}", "{\"a\": \"x\", \"b\": 1}"],
        ),
        (Constraint::Regex("^(ab|c/d){2}$".into()), vec!["abc/d", "abab"], vec!["ab", "ababab"]),
        (Constraint::Regex("\\d+é?".into()), vec!["12", "3é"], vec!["é", "a"]),
        (Constraint::Regex("$".into()), vec![""], vec!["a"]),
        // SmolLM2 wrote a date in the digits of another script.
        (
            Constraint::Regex("\\d[\\d.-][^\\d]\\w\\s".into()),
            vec!["1.x_ ", "12äa\n"],
            vec!["٣1xa ", "123a ", "11xä "],
        ),
        (choice(&["yes", "yes!", "no"]), vec!["yes", "yes!", "no"], vec!["y", "yesno", ""]),
        (choice(&odd), odd.to_vec(), vec!["a", "/", "x"]),
        (Constraint::Grammar(lark.into()), vec!["<a>", "<a,bc>"], vec!["<>", "<a,>", "a"]),
        (Constraint::Grammar(gbnf.into()), vec!["<a>", "<a,bc>"], vec!["<>", "<a,>", "a"]),
    ] {
        for text in allowed {
            assert!(allows(&compiler, &constraint, text), "{constraint:?}: {text:?}");
        }
        for text in forbidden {
            assert!(!allows(&compiler, &constraint, text), "{constraint:?}: {text:?}");
        }
    }
}

#[test]
fn white_space_in_json_is_bounded_and_can_be_chosen() {
    let compiler = compiler();
    let with = |options: JsonOptions| Constraint::Json { schema: json!({"type": "array"}), options };
    for (constraint, allowed, forbidden) in [
        (with(JsonOptions::SomeSpace), vec!["[1, 2]", "[1,2]", "[\n    1]"], vec!["[1,  2]", "[\n\n\n1]"]),
        (with(JsonOptions::NoSpace), vec!["[1,2]"], vec!["[1, 2]"]),
        (
            with(JsonOptions::Space("__?".into())),
            vec!["[1,_2]", "[1,__2]", "[1,2]"],
            vec!["[1, 2]", "[1,___2]"],
        ),
        (schema(json!({"x-guidance": {"whitespace_flexible": false}})), vec!["[1,2]"], vec!["[1, 2]"]),
    ] {
        for text in allowed {
            assert!(allows(&compiler, &constraint, text), "{constraint:?}: {text:?}");
        }
        for text in forbidden {
            assert!(!allows(&compiler, &constraint, text), "{constraint:?}: {text:?}");
        }
    }
}

/// The answer's text is what remains when its first space is dropped.
#[test]
fn where_the_first_space_of_an_answer_is_dropped_it_comes_in_addition() {
    let compiler = compiler_that(true);
    let lark = "start: \"a\" B\nB: /b+/";
    for (constraint, text) in [
        (Constraint::json_object(), "{\"a\": 1}"),
        (Constraint::Regex("a+".into()), "aa"),
        (Constraint::Choice(vec![" a".into(), "b".into()]), " a"),
        (Constraint::Choice(vec![" a".into(), "b".into()]), "b"),
        (Constraint::Grammar(lark.into()), "abb"),
        (Constraint::Grammar("root ::= \"x\"".into()), "x"),
    ] {
        assert!(allows(&compiler, &constraint, &format!(" {text}")), "{constraint:?}: {text:?}");
        assert!(!allows(&compiler, &constraint, text), "{constraint:?}: {text:?}");
    }
    // A token may hold both that space and what follows it.
    let mut guide = begin(&compiler, Constraint::Regex("a+".into())).expect("it can be served");
    let long = END + 1 + 3;
    assert_eq!(tokens_allowed(&mut guide, &[END], false), [u32::from(b' '), long]);
    assert_eq!(guide.accept(long), Ok(false));
    assert_eq!(tokens_allowed(&mut guide, &[END], false), [u32::from(b'a'), END]);
}

#[test]
fn end_tokens_come_where_the_answer_may_be_over_and_nowhere_else() {
    let compiler = compiler();
    let (a, b) = (u32::from(b'a'), u32::from(b'b'));
    let guide = || begin(&compiler, Constraint::Regex("a{1,2}b?".into())).expect("it can be served");
    let mut at_one = guide();
    assert_eq!(tokens_allowed(&mut at_one, &[END], false), [a]);
    assert_eq!(at_one.accept(a), Ok(false));
    assert_eq!(tokens_allowed(&mut at_one, &[END], false), [a, b, END]);
    assert_eq!(tokens_allowed(&mut at_one, &[END], true), [a, b], "it is too early");
    assert_eq!(tokens_allowed(&mut at_one, &[], false), [a, b], "they are ignored");
    // A text token that is to end the answer ends it here and cannot be a part of it.
    assert_eq!(tokens_allowed(&mut at_one, &[b, 9], false), [9, a, b]);
    assert!(matches!(guide().next(&[a, b], false), Err(GuideError::Stuck(_))));
    // With the last token that there can be it is over.
    assert_eq!(at_one.accept(b), Ok(true));
    assert_eq!(tokens_allowed(&mut at_one, &[END], false), [END]);
    assert_eq!(tokens_allowed(&mut at_one, &[END], true), [END], "there is nothing else");
    assert_eq!(at_one.next(&[], false), Ok(Next::Nothing));
}

#[test]
fn guides_of_one_pattern_do_not_know_of_each_other() {
    let compiler = compiler();
    let constraint = Arc::new(schema(json!({"type": "array", "items": {"type": "boolean"}})));
    let pattern = compiler.pattern(Some(&constraint), None).expect("it can be served");
    let mut first = pattern.begin().expect("it can be served");
    for token in b"[true" {
        assert_eq!(first.accept(u32::from(*token)), Ok(false));
    }
    let mut second = pattern.begin().expect("it can be served");
    assert_eq!(tokens_allowed(&mut second, &[END], false), [u32::from(b'[')]);
    assert!(tokens_allowed(&mut first, &[END], false).contains(&u32::from(b']')));
}

/// Every schema of the public suite: values that do not meet it are not let through, and one that cannot be
/// served says why.
#[test]
fn no_schema_of_the_public_suite_lets_a_wrong_value_through() {
    let compiler = compiler();
    let suite = std::fs::read_to_string("fixtures/json_schema_suite.jsonl").expect("the fixture is there");
    let (mut num_served, mut num_refused, mut num_allowed, mut num_valid) = (0, 0, 0, 0);
    for line in suite.lines() {
        let case: Value = serde_json::from_str(line).expect("JSON");
        let constraint = schema(case["schema"].clone());
        let told = format!("{}: {}", case["file"], case["description"]);
        let values = |which: &str| -> Vec<String> {
            case[which].as_array().expect("a list").iter().map(ToString::to_string).collect()
        };
        match compiler.pattern(Some(&Arc::new(constraint.clone())), None) {
            Err(error) => {
                num_refused += 1;
                assert!(!error.to_string().is_empty(), "{told}");
            }
            Ok(_) => {
                num_served += 1;
                for value in values("invalid") {
                    assert!(!allows(&compiler, &constraint, &value), "{told}: {value}");
                }
                let valid = values("valid");
                num_valid += valid.len();
                num_allowed += valid.iter().filter(|value| allows(&compiler, &constraint, value)).count();
            }
        }
    }
    // Of the rest, members stand in another order, or a schema describes values of one kind and says nothing of
    // the others.
    assert!(num_served >= 160, "{num_served} served, {num_refused} refused");
    assert!(num_allowed * 10 > num_valid * 8, "{num_allowed} of {num_valid}");
}

#[test]
fn what_cannot_be_served_says_why() {
    let compiler = compiler();
    let lark = |text: &str| Constraint::Grammar(text.to_owned());
    for (constraint, problem) in [
        (schema(json!({"not": {"type": "string"}})), "not"),
        (schema(json!({"type": "object", "patternProperties": 5})), "patternProperties"),
        (schema(json!({"$ref": "http://127.0.0.1:9/x"})), "http://127.0.0.1:9/x"),
        (schema(json!({"$ref": "#/$defs/nowhere"})), "nowhere"),
        (schema(json!({"type": "strin"})), "strin"),
        (schema(json!({"type": "string", "format": "no such format"})), "no such format"),
        (schema(json!(false)), "no JSON meets it"),
        (schema(json!({"x-guidance": {"lenient": true}, "not": {}})), "x-guidance.lenient"),
        (schema(json!({"x-guidance": {"no_such": true}})), "no_such"),
        (Constraint::Regex("(".into()), "("),
        (Constraint::Regex("a\\".into()), "escape"),
        (Constraint::Regex("(?=a)b".into()), "look"),
        (lark("start: nowhere"), "nowhere"),
        (lark("begin: \"a\""), "start"),
        (lark("start: \"a"), "1"),
        (lark("root ::= nowhere"), "GBNF"),
        (lark("start: <|no such token|>"), "no such token"),
    ] {
        let error = compiler
            .pattern(Some(&Arc::new(constraint.clone())), None)
            .expect_err("it cannot be served")
            .to_string();
        assert!(error.contains(problem), "{constraint:?}: {error}");
        assert!(!error.contains('\n') && !error.contains("verbose") && error.len() < 2000, "{error}");
    }
}

/// Of these lists the time to compile them grows with the square: 20,000 properties took 42 seconds.
#[test]
fn schemas_have_no_more_names_than_are_soon_compared() {
    let compiler = compiler();
    let members = |count: usize, form: fn(usize) -> String| -> serde_json::Map<String, Value> {
        (0..count).map(|index| (form(index), json!({"type": "null"}))).collect()
    };
    let name = |index| format!("member {index}");
    let pattern = |index| format!("^{index:04}[a-z]*$");
    for (schema_of, is_served) in [
        (json!({"properties": members(300, name)}), true),
        (json!({"properties": members(2500, name)}), false),
        (json!({"$defs": {"a": [{"properties": members(2500, name)}]}}), false),
        (json!({"type": "object", "required": members(2500, name).keys().collect::<Vec<_>>()}), false),
        (json!({"patternProperties": members(20, pattern)}), true),
        (json!({"patternProperties": members(100, pattern)}), false),
    ] {
        match compiler.pattern(Some(&Arc::new(schema(schema_of))), None) {
            Ok(_) => assert!(is_served),
            Err(error) => assert!(!is_served && error.to_string().contains("too many members"), "{error}"),
        }
    }
}

/// Each of these took minutes, gigabytes or the whole stack somewhere.
#[test]
fn hostile_constraints_are_refused_or_served_in_bounded_time() {
    let compiler = compiler();
    let nested = |depth: usize| {
        (0..depth).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}))
    };
    let all_of = |depth: usize| {
        (0..depth).fold(json!({"type": "object"}), |inner, _| json!({"allOf": [inner.clone(), inner]}))
    };
    let words =
        |count: usize, len: usize| (0..count).map(|index| format!("{index:0len$}")).collect::<Vec<_>>();
    let constraints = vec![
        schema(nested(120)),
        schema(all_of(14)),
        schema(json!({"$ref": "#"})),
        schema(json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        schema(json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        schema(
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ),
        schema(json!({"enum": words(200_000, 50)})),
        schema(json!({"enum": words(20_000, 20)})),
        schema(json!({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"})),
        schema(json!({"type": "string", "pattern": "^(.*a){25}.*(b.{30}c|d.{40}e)*$"})),
        schema(json!({"type": "string", "minLength": 1_000_000_000})),
        schema(json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "null"}})),
        schema(json!({"multipleOf": 1e-300, "type": "number"})),
        schema(json!({"type": "integer", "multipleOf": 999_999_937})),
        schema(
            json!({"oneOf": words(2000, 9).iter().map(|name| json!({"const": {"k": name}})).collect::<Vec<_>>()}),
        ),
        Constraint::Regex("((a*)*)*b".into()),
        Constraint::Regex("(x+x+)+y".into()),
        Constraint::Regex(format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000))),
        Constraint::Regex("[\\s\\S]{1,100000}[a-z]{50000}".into()),
        Constraint::Choice(words(100_000, 10)),
        Constraint::Grammar(format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000))),
        Constraint::Grammar("start: start start | \"a\"".into()),
        Constraint::Grammar("start: a\na: b\nb: a".into()),
        Constraint::Grammar("start: A\nA: A".into()),
        Constraint::Grammar("start: \"a\"{1000000000}".into()),
    ];
    for constraint in constraints {
        let begun = Instant::now();
        let told: String = format!("{constraint:?}").chars().take(100).collect();
        if let Ok(mut guide) = begin(&compiler, constraint) {
            // Whatever it says, it says it soon.
            for _ in 0..20 {
                let Ok(Next::OneOf(allowed)) = guide.next(&[END], false) else { break };
                let Some(token) = allowed.iter().find(|token| *token != END) else { break };
                if guide.accept(token) != Ok(false) {
                    break;
                }
            }
        }
        eprintln!("{:?} {told}", begun.elapsed());
    }
}

/// A guide of `{`, some `a` and `}`, behind thinking.
fn behind_thinking(compiler: &Compiler, is_open: bool, max_tokens: Option<usize>, is_held: bool) -> Guide {
    let constraint = Arc::new(Constraint::Regex("\\{a*\\}".to_owned()));
    let forced_close = b"</t>".iter().map(|byte| u32::from(*byte)).collect();
    let preamble = Preamble { open: "<t>".into(), is_open, close: "</t>".into(), max_tokens, forced_close };
    let pattern = compiler.pattern(is_held.then_some(&constraint), Some(preamble)).expect("it can be served");
    pattern.begin().expect("it can be served")
}

fn take(guide: &mut Guide, text: &str) {
    for byte in text.bytes() {
        assert_eq!(guide.accept(u32::from(byte)), Ok(byte == b'}' && text.ends_with('}')), "{text}");
    }
}

#[test]
fn an_answer_is_held_to_its_constraint_behind_its_thinking() {
    let compiler = compiler();
    for (is_open, thinking) in [(false, "<t>any thing{</ </t>"), (true, "any thing{</ </t>"), (false, "")] {
        let mut guide = behind_thinking(&compiler, is_open, None, true);
        take(&mut guide, thinking);
        if !thinking.is_empty() {
            assert_eq!(tokens_allowed(&mut guide, &[END], false), [u32::from(b'{')], "{thinking}");
        }
        take(&mut guide, "{aa}");
        assert_eq!(tokens_allowed(&mut guide, &[END], false), [END]);
    }
    let mut guide = behind_thinking(&compiler, false, None, true);
    assert_eq!(tokens_allowed(&mut guide, &[END], false), [u32::from(b'<'), u32::from(b'{')]);
    take(&mut guide, "<");
    assert_eq!(tokens_allowed(&mut guide, &[END], false), [u32::from(b't')]);
    take(&mut guide, "t>");
    let within = tokens_allowed(&mut guide, &[END], false);
    assert!(within.contains(&u32::from(b'x')) && !within.contains(&END), "thinking ends no answer");
}

#[test]
fn thinking_is_closed_when_it_has_its_tokens_and_the_answer_follows() {
    let compiler = compiler();
    for is_held in [true, false] {
        let mut guide = behind_thinking(&compiler, true, Some(3), is_held);
        take(&mut guide, "abc");
        for byte in b"</t>" {
            assert_eq!(tokens_allowed(&mut guide, &[END], false), [u32::from(*byte)]);
            assert_eq!(guide.accept(u32::from(*byte)), Ok(false));
        }
        match is_held {
            true => assert_eq!(tokens_allowed(&mut guide, &[END], false), [u32::from(b'{')]),
            false => assert_eq!(guide.next(&[END], false), Ok(Next::Anything)),
        }
    }
    let mut free = behind_thinking(&compiler, false, Some(3), false);
    assert_eq!(free.next(&[END], false), Ok(Next::Anything));
    let early = tokens_allowed(&mut free, &[END], true);
    assert!(!early.contains(&END) && early.contains(&u32::from(b'x')));
    take(&mut free, "no thinking at all");
    assert_eq!(free.next(&[END], false), Ok(Next::Anything));
}
