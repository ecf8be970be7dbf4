//! Namespaces that hold themselves, which a template must not make.
//!
//! Owns having what is assigned to a namespace's attribute looked at first: the template engine writes, compares and
//! frees values by recursion, and a value that holds itself has no end. Nothing else can hold itself: lists and
//! mappings do not change.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

/// The function that looks at it; no template has a name that ends so.
const CHECK: &str = "_without_namespaces_";

/// Values that are looked at for one assignment at most.
const MAX_VALUES: usize = 1_000_000;

/// Makes the function known that [`checked`] has the template call.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function(CHECK, without_namespaces);
    environment.add_filter(CHECK, without_namespaces);
}

/// A template whose assignments to attributes, `{% set a.b = … %}` and `{% set a.b|filter %}…{% endset %}`, are checked.
pub(super) fn checked(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = split_at_tag(rest) {
        out.push_str(before);
        let end = match &tag[..2] {
            "{#" => tag.find("#}").map(|at| at + 2),
            "{{" => end_of(tag, "}}"),
            _ => end_of(tag, "%}"),
        };
        // The engine says what is wrong with it.
        let Some(end) = end else {
            rest = tag;
            break;
        };
        let (whole, behind) = tag.split_at(end);
        if tag.starts_with("{%") && name_of(whole) == "raw" {
            let end = end_of_raw(behind).unwrap_or(behind.len());
            out.push_str(whole);
            out.push_str(&behind[..end]);
            rest = &behind[end..];
            continue;
        }
        match assignment(whole) {
            Some((target, value, close)) => {
                out.extend([target, " ", CHECK, "((", value, "))", close]);
            }
            None => match filters(whole) {
                Some((filters, close)) => out.extend([filters, "|", CHECK, close]),
                None => out.push_str(whole),
            },
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

fn split_at_tag(text: &str) -> Option<(&str, &str)> {
    let at = text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))?;
    Some(text.split_at(at))
}

/// Where a tag ends, behind its closing brackets; those within texts are none.
fn end_of(tag: &str, close: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let mut quote = None;
    let mut at = 2;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, b'\'' | b'"') => quote = Some(bytes[at]),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The name that a block's tag begins with.
fn name_of(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    &inner[..inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len())]
}

/// Where the tag that ends a raw block begins.
fn end_of_raw(text: &str) -> Option<usize> {
    let starts = text.match_indices("{%").map(|(at, _)| at);
    starts.into_iter().find(|&at| name_of(&text[at..]) == "endraw")
}

/// What comes before the value of an assignment to an attribute, the value, and what comes behind it.
fn assignment(tag: &str) -> Option<(&str, &str, &str)> {
    if !tag.starts_with("{%") || name_of(tag) != "set" {
        return None;
    }
    let equals = tag.find(|c| !is_target(c)).filter(|&at| tag[at..].starts_with('='))?;
    let (target, rest) = tag.split_at(equals + 1);
    let value = rest.strip_suffix("%}")?;
    let value = value.strip_suffix(['-', '+']).unwrap_or(value);
    target.contains('.').then_some((target, value, &rest[value.len()..]))
}

/// What comes before the end of a tag that has filters make the value of an attribute of what follows, and that end.
fn filters(tag: &str) -> Option<(&str, &str)> {
    if !tag.starts_with("{%") || name_of(tag) != "set" {
        return None;
    }
    let filter = tag.find(|c| !is_target(c)).filter(|&at| tag[at..].starts_with('|'))?;
    let filters = tag.strip_suffix("%}")?;
    let filters = filters.strip_suffix(['-', '+']).unwrap_or(filters);
    tag[..filter].contains('.').then_some((filters, &tag[filters.len()..]))
}

/// What the target of an assignment may be made of.
fn is_target(c: char) -> bool {
    c.is_alphanumeric() || c.is_whitespace() || "_.,()+-%{".contains(c)
}

/// The value itself, unless there is a namespace in it. What is computed as it is gone through is computed here.
fn without_namespaces(value: Value) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => value.try_iter()?.collect(),
        _ => value,
    };
    let mut values = vec![value.clone()];
    let mut num_values = 0;
    while let Some(next) = values.pop() {
        num_values += 1;
        if num_values > MAX_VALUES {
            let problem = "too much is assigned to an attribute of a namespace";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        let Some(object) = next.as_object() else { continue };
        if object.type_name().contains("namespace_object::") {
            let problem = "a namespace within a namespace may hold itself and is not served";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        match next.kind() {
            ValueKind::Map => {
                let keys: Vec<Value> = next.try_iter()?.collect();
                for key in keys {
                    values.push(next.get_item(&key)?);
                    values.push(key);
                }
            }
            ValueKind::Seq | ValueKind::Iterable => values.extend(next.try_iter()?),
            _ => {}
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        add_to(&mut environment);
        environment.add_template_owned("t", checked(source))?;
        environment.get_template("t")?.render(())
    }

    /// Each overflowed the stack, which ended the process.
    #[test]
    fn a_namespace_that_would_hold_itself_is_an_error() {
        for source in [
            "{% set n=namespace() %}{% set n.a=n %}{{ n }}",
            "{% set n = namespace() %}{%- set n.a = [1, {'b': [n]}] -%}{{ n.a ~ '' }}",
            "{% set n = namespace() %}{% set m = namespace(n=n) %}{% set n.m = m %}{{ m == n }}",
            "{% set n = namespace() %}{% set m = n %}{% set (n.a, b) = m, 1 %}{{ n }}",
            "{% set n = namespace() %}{% set\nn . a\n=\n[n]|batch(1) +%}{{ n }}",
            "{% set n = namespace() %}{% set n.a|default(n,true) %}{% endset %}{{ n }}",
            "{% set n = namespace() %}{%- set n.a | trim | default([n], true) -%}{% endset %}{{ n }}",
            "{{ '{% set' }}{% set n = namespace() %}{% set n.a = '%}' if false else n %}{{ n }}",
            "{# {{ #}{% raw %}{% set n.a = n %}{% endraw %}{% set n = namespace() %}{% set n.a = n %}{{ n }}",
        ] {
            let error = rendered(source).expect_err(source).to_string();
            assert!(error.contains("a namespace within a namespace"), "{source}: {error}");
        }
    }

    #[test]
    fn other_templates_are_as_they_were() {
        for (source, expected) in [
            ("{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}", "2"),
            ("{% set n = namespace() %}x {%- set n.a = [1] + [2] -%} {{ n.a[1] }}", "x2"),
            ("{% set n = namespace() %}{% set n.a, b = 1, 2 %}{{ n.a }}{{ b }}", "12"),
            ("{% set n = namespace() %}{% set n.a = 1 == 1 %}{{ n.a }}", "True"),
            ("{% set n = namespace() %}{% set n.a = 'x=%}\\'' %}{{ n.a }}", "x=%}'"),
            ("{% set n = namespace() %}{% set n.a %}b.c = d{% endset %}{{ n.a }}", "b.c = d"),
            ("{% set n = namespace() %}{% set n.a|upper|trim %} b {% endset %}{{ n.a }}", "B"),
            ("{% raw %}{% set n.a = n %}{% endraw %}", "{% set n.a = n %}"),
            ("{{ '{% set n.a = n %}' }}{# {% set n.a = n %} #}", "{% set n.a = n %}"),
            ("{% set n = namespace() %}{% set n.a = range(3) %}{{ n.a | length }}", "3"),
            ("{% set a = 1.5 %}{% if a >= 1.5 %}{{ a }}{% endif %}", "1.5"),
        ] {
            assert_eq!(rendered(source).expect(source), expected, "{source}");
        }
    }
}
