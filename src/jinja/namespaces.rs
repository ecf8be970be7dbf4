//! Namespaces that hold themselves, which a template must not make.
//!
//! Owns having what is assigned to a namespace's attribute looked at first: the template engine writes, compares and
//! frees values by recursion, and a value that holds itself has no end. Nothing else can hold itself: lists and
//! mappings do not change.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::tags;

/// The function that looks at it; no template has a name that ends so.
pub(super) const CHECK: &str = "_without_namespaces_";

/// Values that are looked at for one assignment at most.
const MAX_VALUES: usize = 1_000_000;

/// Makes the function known that [`checked`] has the template call.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function(CHECK, without_namespaces);
    environment.add_filter(CHECK, without_namespaces);
}

/// A template whose assignments to attributes, `{% set a.b = … %}` and `{% set a.b|filter %}…{% endset %}`, are checked.
pub(super) fn checked(source: &str) -> String {
    tags::rewritten(source, |tag| {
        if tag.name() != "set" {
            return None;
        }
        if let Some((target, value, close)) = assignment(tag.whole) {
            return Some([target, " ", CHECK, "((", value, "))", close].concat());
        }
        filters(tag.whole).map(|(filters, close)| [filters, "|", CHECK, close].concat())
    })
}

/// What comes before the value of an assignment to an attribute, the value, and what comes behind it.
fn assignment(tag: &str) -> Option<(&str, &str, &str)> {
    let equals = tag.find(|c| !is_target(c)).filter(|&at| tag[at..].starts_with('='))?;
    let (target, rest) = tag.split_at(equals + 1);
    let value = rest.strip_suffix("%}")?;
    let value = value.strip_suffix(['-', '+']).unwrap_or(value);
    target.contains('.').then_some((target, value, &rest[value.len()..]))
}

/// What comes before the end of a tag that has filters make the value of an attribute of what follows, and that end.
fn filters(tag: &str) -> Option<(&str, &str)> {
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
