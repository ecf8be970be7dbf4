//! What an answer is to be, as text.
//!
//! Owns the kinds of constraint and how each is said in llguidance's grammar language. Which request fields
//! give one is `batch/`'s business, compiling it `compiler`'s.

use llguidance::{api::TopLevelGrammar, regex_to_lark};
use serde_json::{Map, Value, json};

use super::{GuideError, gbnf};

/// White space between the parts of JSON: a space, or line ends with an indentation, as in llama.cpp. Without
/// a bound a model that likes white space would write nothing else.
const JSON_SPACE: &str = r" |\n{1,2}[ \t]{0,20}";

/// Classes that are of ASCII alone, as in the patterns of schemas: digits of some forty scripts are more than
/// anybody means by `\d`.
const ASCII_CLASSES: &str = "dws";

/// Lists of names in schemas for which llguidance's time grows with the square of their length, with the weight
/// of a pair.
const PAIRED: [(&str, usize); 3] = [("properties", 1), ("required", 1), ("patternProperties", 500)];

/// Most pairs of a schema, of two thousand properties or ninety patterns: about a second.
const MAX_PAIRS: usize = 4_000_000;

/// What an answer is to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// JSON that a schema describes.
    Json { schema: Value, options: JsonOptions },
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A sentence of a grammar, in llguidance's Lark or in GBNF.
    Grammar(String),
}

/// How JSON is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum JsonOptions {
    #[default]
    SomeSpace,
    NoSpace,
    /// White space between its parts is what this expression matches.
    Space(String),
}

impl Constraint {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::Json { schema: json!({"type": "object"}), options: JsonOptions::default() }
    }

    /// Bytes of its text.
    pub(super) fn num_bytes(&self) -> usize {
        match self {
            Self::Json { schema, .. } => schema.to_string().len(),
            Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }

    /// A digest of all of it.
    pub(super) fn key(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut say = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        match self {
            Self::Json { schema, options } => {
                say("json");
                say(&schema.to_string());
                say(&format!("{options:?}"));
            }
            Self::Regex(expression) => ["regex", expression].into_iter().for_each(say),
            Self::Choice(texts) => {
                ["choice"].into_iter().chain(texts.iter().map(String::as_str)).for_each(say)
            }
            Self::Grammar(text) => ["grammar", text].into_iter().for_each(say),
        }
        hasher.finalize()
    }

    /// The same in llguidance's language, behind a space where the first one of an answer is dropped.
    pub(super) fn grammar(&self, behind_space: bool) -> Result<TopLevelGrammar, GuideError> {
        let body = match self {
            Self::Json { schema, options } => {
                let schema = with_options(schema, options)?;
                if !behind_space {
                    return Ok(TopLevelGrammar::from_json_schema(schema));
                }
                format!("%json {schema}")
            }
            Self::Regex(expression) => format!("/{}/", whole(expression)?),
            Self::Choice(texts) => {
                let literals: Vec<String> = texts.iter().map(|text| literal(text)).collect();
                format!("CHOICE\nCHOICE: {}", literals.join(" | "))
            }
            Self::Grammar(text) => {
                let lark = if gbnf::is_gbnf(text) { gbnf::to_lark(text)? } else { text.clone() };
                if !behind_space {
                    return Ok(TopLevelGrammar::from_lark(lark));
                }
                format!("%lark {{\n{lark}\n}}")
            }
        };
        let start = if behind_space { "start: \" \" body\nbody" } else { "start" };
        Ok(TopLevelGrammar::from_lark(format!("{start}: {body}")))
    }
}

/// A schema that says how its JSON is written.
fn with_options(schema: &Value, options: &JsonOptions) -> Result<Value, GuideError> {
    let mut schema = match schema {
        Value::Bool(true) => Map::new(),
        Value::Object(schema) => schema.clone(),
        _ => return Err(GuideError::NotServed("no JSON meets it".to_owned())),
    };
    if num_pairs(schema.values()).saturating_add(own_pairs(&schema)) > MAX_PAIRS {
        let names: Vec<&str> = PAIRED.iter().map(|(name, _)| *name).collect();
        let reason = format!("it has too many members in {}", names.join(", "));
        return Err(GuideError::NotServed(reason));
    }
    if let Some(told) = schema.iter().find_map(|(name, value)| bound_out_of_reach(name, value)) {
        return Err(GuideError::NotServed(told));
    }
    let guidance = schema.entry("x-guidance").or_insert_with(|| json!({}));
    let Value::Object(guidance) = guidance else {
        return Err(GuideError::NotServed("x-guidance: must be an object".to_owned()));
    };
    for name in ["lenient", "coerce_one_of"] {
        if guidance.get(name).is_some_and(|value| *value != Value::Bool(false)) {
            let reason = format!("x-guidance.{name}: an answer might not meet the schema; leave it out");
            return Err(GuideError::NotServed(reason));
        }
    }
    let says_itself =
        ["whitespace_flexible", "whitespace_pattern"].iter().any(|name| guidance.contains_key(*name));
    match options {
        JsonOptions::SomeSpace if says_itself => {}
        JsonOptions::SomeSpace => _ = guidance.insert("whitespace_pattern".to_owned(), json!(JSON_SPACE)),
        JsonOptions::NoSpace => _ = guidance.insert("whitespace_flexible".to_owned(), json!(false)),
        JsonOptions::Space(pattern) => _ = guidance.insert("whitespace_pattern".to_owned(), json!(pattern)),
    }
    Ok(Value::Object(schema))
}

/// Bounds that llguidance does not hold to exactly, as it keeps them in float64 and writes them out in decimals, or
/// that make a state for each remainder: what is wrong with the first one, by the name of its keyword.
fn bound_out_of_reach(name: &str, value: &Value) -> Option<String> {
    const BOUNDS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
    /// 2^53, up to which float64 has all whole numbers.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    const MIN_EXACT: f64 = 1e-9;
    const MAX_MULTIPLE: f64 = 65_536.0;
    match value {
        Value::Number(number) if BOUNDS.contains(&name) => {
            let size = number.as_f64().unwrap_or(f64::INFINITY).abs();
            let is_exact = size == 0.0 || (MIN_EXACT..MAX_EXACT).contains(&size);
            if !is_exact {
                Some(format!("{name}: {number} is not held to exactly; bounds from {MIN_EXACT} to 2^53 are"))
            } else if name == "multipleOf" && size > MAX_MULTIPLE {
                Some(format!("{name}: {number} is more than {MAX_MULTIPLE}"))
            } else {
                None
            }
        }
        Value::Array(values) => values.iter().find_map(|value| bound_out_of_reach("", value)),
        Value::Object(members) => members.iter().find_map(|(name, value)| bound_out_of_reach(name, value)),
        _ => None,
    }
}

/// Pairs of names of all schemas in these values.
fn num_pairs<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
    values.fold(0, |sum, value| {
        let pairs = match value {
            Value::Array(values) => num_pairs(values.iter()),
            Value::Object(members) => num_pairs(members.values()).saturating_add(own_pairs(members)),
            _ => 0,
        };
        sum.saturating_add(pairs)
    })
}

fn own_pairs(schema: &Map<String, Value>) -> usize {
    let pairs = PAIRED.iter().map(|(name, weight)| {
        let num_names = match schema.get(*name) {
            Some(Value::Array(names)) => names.len(),
            Some(Value::Object(names)) => names.len(),
            _ => 0,
        };
        num_names.saturating_mul(num_names).saturating_mul(*weight)
    });
    pairs.fold(0, usize::saturating_add)
}

/// An expression for llguidance, which matches whole texts and knows no anchors: at the ends they say nothing.
fn whole(expression: &str) -> Result<String, GuideError> {
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    let ends_escaped = |text: &str| text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
    let expression = match expression.strip_suffix('$') {
        Some(rest) if !ends_escaped(rest) => rest,
        _ => expression,
    };
    if ends_escaped(expression) {
        return Err(GuideError::NotServed("the expression ends within an escape".to_owned()));
    }
    // Two slashes by themselves would begin a comment.
    Ok(if expression.is_empty() { "(?:)".to_owned() } else { regex_to_lark(expression, ASCII_CLASSES) })
}

/// A text as a literal of Lark.
pub(super) fn literal(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_at_the_ends_of_an_expression_say_nothing() {
        for (given, expected) in [
            ("^a+$", "a+"),
            ("a\\$", "a\\$"),
            ("a\\\\$", "a\\\\"),
            ("^a|b$", "a|b"),
            ("a/b", "a\\/b"),
            ("", "(?:)"),
        ] {
            assert_eq!(whole(given).as_deref(), Ok(expected), "{given}");
        }
        assert!(whole("a\\").is_err());
    }

    /// 0 was an answer above 0 and below 1e-300, and 2^53 one that had to be 2^53 + 1; 1,000,003 took seconds.
    #[test]
    fn bounds_that_are_not_held_to_exactly_are_not_served() {
        let told = |schema: Value| match with_options(&schema, &JsonOptions::SomeSpace) {
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        for (keyword, schema) in [
            (
                "exclusiveMaximum",
                json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-300}),
            ),
            ("minimum", json!({"type": "integer", "minimum": 9_007_199_254_740_993_u64})),
            ("maximum", json!({"properties": {"a": {"anyOf": [{"maximum": -1e16}]}}})),
            ("multipleOf", json!({"type": "integer", "multipleOf": 1_000_003})),
        ] {
            assert!(told(schema.clone()).is_some_and(|told| told.contains(keyword)), "{schema}");
        }
        let sound = json!({"minimum": -5, "maximum": 1e6, "multipleOf": 0.01, "properties": {"minimum": {}}});
        assert_eq!(told(sound), None);
    }

    #[test]
    fn each_constraint_has_a_key_of_its_own() {
        let json = |schema| Constraint::Json { schema, options: JsonOptions::default() };
        let choice = |texts: &[&str]| Constraint::Choice(texts.iter().map(ToString::to_string).collect());
        let all = [
            Constraint::json_object(),
            json(json!({"type": "array"})),
            Constraint::Json { schema: json!({"type": "array"}), options: JsonOptions::NoSpace },
            Constraint::Json { schema: json!({"type": "array"}), options: JsonOptions::Space(" ".into()) },
            Constraint::Regex("ab".into()),
            Constraint::Grammar("ab".into()),
            choice(&["ab"]),
            choice(&["a", "b"]),
            choice(&["b", "a"]),
        ];
        for (place, constraint) in all.iter().enumerate() {
            let same = all.iter().filter(|other| other.key() == constraint.key());
            assert_eq!(same.count(), 1, "{place}");
        }
    }
}
