//! Fields of requests and messages that other programs know.
//!
//! Owns what becomes of each: refused, as ignoring it would change the answer, unless it has a
//! value at which it changes nothing; or ignored, as it changes no answer anywhere. What is in
//! none of the tables is warned of by name. A field that is served leaves its table for that of
//! `served`. The other tables are in `table`.

mod served;
mod table;

use serde_json::{Map, Value};

use self::table::{IGNORED, KWARGS, MESSAGE, REQUEST, REQUEST_OR_COLUMN};
use super::super::line_error::RequestError;
use super::fields::Fields;

pub use self::served::{SERVED, ServedField, ServedGroup};

/// Fields of a request that are refused where they would change its answer, with the reason.
pub fn refused_fields() -> impl Iterator<Item = (&'static str, &'static str)> {
    REQUEST.iter().chain(REQUEST_OR_COLUMN).map(|refused| (refused.name, refused.reason))
}

/// Fields of a request that change no answer.
pub fn ignored_fields() -> impl Iterator<Item = &'static str> {
    IGNORED.iter().copied()
}

/// A field and the values that make it mean nothing.
struct Refused {
    name: &'static str,
    is_neutral: fn(&Value) -> bool,
    reason: &'static str,
}

/// Takes every known field of a request and refuses the first that would matter.
pub(super) fn check_request(fields: &mut Fields) -> Result<(), RequestError> {
    for Refused { name, is_neutral, reason } in REQUEST {
        if fields.get(name).is_some_and(|value| !is_neutral(value)) {
            return Err(RequestError::unsupported(name, reason));
        }
        fields.take(name);
    }
    for Refused { name, is_neutral, reason } in REQUEST_OR_COLUMN {
        if fields.get(name).is_some_and(|value| !is_neutral(value)) {
            return Err(RequestError::unsupported(name, reason));
        }
    }
    take_ignored(fields);
    Ok(())
}

/// Takes the fields that change no answer.
pub(super) fn take_ignored(fields: &mut Fields) {
    for name in IGNORED {
        fields.take(name);
    }
}

/// The same for a message, whose place is `param`.
pub(super) fn check_message(message: &mut Map<String, Value>, param: &str) -> Result<(), RequestError> {
    check_object(message, MESSAGE, param)
}

/// The same for the template's variables.
pub(super) fn check_kwargs(kwargs: &mut Map<String, Value>) -> Result<(), RequestError> {
    check_object(kwargs, KWARGS, "chat_template_kwargs")
}

fn check_object(object: &mut Map<String, Value>, known: &[Refused], param: &str) -> Result<(), RequestError> {
    for Refused { name, is_neutral, reason } in known {
        let Some(value) = object.shift_remove(*name) else { continue };
        if !value.is_null() && !is_neutral(&value) {
            return Err(RequestError::unsupported(&format!("{param}.{name}"), reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;

    /// Two values of every JSON type: none of them can be neutral for all fields.
    fn values() -> Vec<Value> {
        ["true", "false", "0", "1", "-1", "0.5", "7", "\"x\"", "\"\"", "[]", "[1]", "{}", "{\"x\": 1}"]
            .iter()
            .map(|text| serde_json::from_str(text).expect("JSON"))
            .collect()
    }

    #[test]
    fn every_field_is_in_one_table_and_has_a_value_that_is_refused() {
        let mut names = HashSet::new();
        for Refused { name, is_neutral, reason } in REQUEST.iter().chain(REQUEST_OR_COLUMN) {
            assert!(names.insert(*name), "{name} is there twice");
            assert!(!reason.is_empty(), "{name}");
            let refused = values().into_iter().find(|value| !is_neutral(value)).expect(name);
            let mut fields = Fields::new(Map::from_iter([((*name).to_owned(), refused)]));
            let error = check_request(&mut fields).expect_err(name);
            assert_eq!((error.code, error.param.as_deref()), ("unsupported_value", Some(*name)));
        }
        for field in SERVED.iter().flat_map(|group| group.fields) {
            // It stays in its table for the forms that do not read it.
            let is_first = names.insert(field.name) || field.name == "system";
            assert!(is_first && !field.takes.is_empty() && !field.summary.is_empty(), "{}", field.name);
        }
        for name in IGNORED {
            assert!(names.insert(*name), "{name} is there twice");
            for value in values() {
                let mut fields = Fields::new(Map::from_iter([((*name).to_owned(), value)]));
                check_request(&mut fields).expect(name);
                assert_eq!(fields.into_unknown_names().count(), 0, "{name}");
            }
        }
    }

    /// Other servers' defaults, written out by clients that send all they have.
    #[test]
    fn what_peers_take_for_nothing_is_no_problem() {
        let neutral = json!({
            "best_of": 1, "use_beam_search": false, "stream": false,
            "repeat_penalty": 1, "typical_p": 1.0, "tfs_z": 1, "mirostat": 0, "xtc_probability": 0.0,
            "dry_multiplier": 0, "dynatemp_range": 0, "top_n_sigma": -1,
            "truncate_prompt_tokens": -1, "do_sample": true,
            "lora": [], "num_beams": 1, "verbosity": "medium",
        });
        let mut fields = Fields::new(neutral.as_object().expect("an object").clone());
        check_request(&mut fields).expect("nothing of it changes an answer");
        assert_eq!(fields.into_unknown_names().collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn fields_that_only_other_programs_act_on_are_refused() {
        for field in [
            json!({"xtc_probability": 0.5}),
            json!({"dry_multiplier": 0.8}),
            json!({"adapters": "a"}),
            json!({"lora": [{"id": 0, "scale": 0.5}]}),
            json!({"lora_request": {"lora_name": "a"}}),
            json!({"structural_tag": "x"}),
            json!({"grammar_lazy": true}),
            json!({"truncate_prompt_tokens": 100}),
            json!({"mirostat": 2}),
            json!({"typical_p": 0.9}),
            json!({"tfs_z": 0.9}),
            json!({"length_penalty": 2}),
            json!({"max_new_tokens": 5}),
            json!({"num_predict": 5}),
            json!({"repeat_penalty": 1.1}),
            json!({"options": {"temperature": 0}}),
            json!({"system": "Be brief."}),
        ] {
            let fields = field.as_object().expect("an object").clone();
            let error = check_request(&mut Fields::new(fields)).expect_err("it would change the answer");
            assert_eq!(error.code, "unsupported_value", "{field}");
        }
    }

    /// Files of benchmarks have columns of their own beside the conversation.
    #[test]
    fn a_column_of_a_programs_name_is_unknown_rather_than_refused() {
        let columns =
            json!({"options": ["A", "B"], "context": "text", "format": "essay", "reasoning": "why"});
        let mut fields = Fields::new(columns.as_object().expect("an object").clone());
        check_request(&mut fields).expect("none of it is a parameter");
        assert_eq!(fields.into_unknown_names().count(), 4);
    }

    #[test]
    fn messages_and_template_variables_have_such_fields_too() {
        let check = |known: &[Refused], fields: Value, param: &str| {
            let mut fields = fields.as_object().expect("an object").clone();
            let checked = check_object(&mut fields, known, param);
            checked.map(|()| Value::Object(fields)).map_err(|error| error.param.unwrap_or_default())
        };
        let message = |fields: Value| check(MESSAGE, fields, "messages[0]");
        let harmless = json!({"role": "user", "weight": 0, "cache_control": {"type": "ephemeral"}, "prefix": false,
                              "audio": null, "annotations": [], "mood": "x"});
        assert_eq!(message(harmless), Ok(json!({"role": "user", "mood": "x"})));
        for name in ["prefix", "partial", "audio", "function_call"] {
            assert_eq!(message(json!({name: true})), Err(format!("messages[0].{name}")));
        }
        let kwargs = |fields: Value| check(KWARGS, fields, "chat_template_kwargs");
        assert_eq!(
            kwargs(json!({"enable_thinking": false, "add_generation_prompt": true, "tokenize": false})),
            Ok(json!({"enable_thinking": false}))
        );
        for (name, value) in [
            ("messages", json!([])),
            ("tools", json!([1])),
            ("add_generation_prompt", json!(false)),
            ("continue_final_message", json!(true)),
            ("chat_template", json!("x")),
        ] {
            assert_eq!(kwargs(json!({name: value})), Err(format!("chat_template_kwargs.{name}")));
        }
    }
}
