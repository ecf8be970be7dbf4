//! The texts that a template makes of values, which may be far larger than the values.
//!
//! Owns that nothing is made into text before it is known to fit: a list of a hundred thousand references to one text
//! is small, and joined it is not. The engine charges for a text when it is there, which is too late. So everything
//! that makes text of values asks here first (what is printed, filters, tests, methods; `~` and `in` by way of
//! `concatenations`), and where several texts are made in one step (`map`), each is paid for.

use std::fmt::{self, Write as _};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, Value, filters,
    functions::Function,
    tests as predicates,
    value::{FunctionArgs, FunctionResult, Kwargs, Rest, StringInput, ValueOrKwargs, from_args},
};

/// What a unit of fuel pays for, here as in the engine.
const BYTES_PER_FUEL: u64 = 64;
/// The same for slots of lists.
const SLOTS_PER_FUEL: u64 = 2;
/// What a byte of a value's text costs where the value is none itself: all that is in it is gone through. As the
/// engine has it.
const BYTES_PER_WRITTEN_BYTE: usize = 16;
/// No value is made into more, whatever its template has fuel for.
const MAX_BYTES: u64 = 256 << 20;
/// Going through a list costs a byte of text an item at least.
const MIN_ITEM_BYTES: usize = 1;
/// A number in a field of a format has no more digits than this by itself.
const MAX_NUMBER_BYTES: usize = 512;
/// Nor is a field wider: such ones are refused elsewhere.
const MAX_FIELD_BYTES: usize = 10_000;
/// HTML makes so much of one sign.
const MAX_ESCAPED_BYTES: u64 = 6;

/// What the engine says where there is no fuel.
fn out_of_fuel() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}

/// An error unless the text of a value fits into what there is fuel for; returns its bytes.
pub(crate) fn ensure_fits(state: &State, value: &Value) -> Result<usize, Error> {
    Room::of(state).take_value(value)
}

/// The same of several values together.
pub(super) fn ensure_all_fit(state: &State, values: &[Value]) -> Result<(), Error> {
    fits(state, values)
}

/// Has everything that makes text of values ask first.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_formatter(write_fitting);
    let env = environment;
    add_filter(env, "safe", fits, filters::safe);
    add_filter(env, "escape", escaped_fits, filters::escape);
    add_filter(env, "e", escaped_fits, filters::escape);
    add_filter(env, "lower", fits, filters::lower);
    add_filter(env, "upper", fits, filters::upper);
    add_filter(env, "title", fits, filters::title);
    add_filter(env, "capitalize", fits, filters::capitalize);
    add_filter(env, "trim", fits, filters::trim);
    add_filter(env, "string", fits, filters::string);
    add_filter(env, "split", split_fits, filters::split);
    add_filter(env, "lines", split_fits, filters::lines);
    add_filter(env, "list", no_text, filters::list);
    add_filter(env, "batch", no_text, filters::batch);
    add_filter(env, "slice", no_text, filters::slice);
    add_filter(env, "join", joined_fits, filters::join);
    add_filter(env, "format", formatted_fits, filters::format);
    add_filter(env, "sum", summed_fits, filters::sum);
    add_filter(env, "indent", indented_fits, filters::indent);
    add_filter(env, "pprint", pretty_fits, filters::pprint);
    add_filter(env, "replace", fits, replace);
    add_test(env, "startingwith", Value::from_function(predicates::is_startingwith));
    add_test(env, "endingwith", Value::from_function(predicates::is_endingwith));
    add_test(env, "in", Value::from_function(predicates::is_in));
}

/// Asks before one of Python's methods on texts.
pub(crate) fn ensure_method_fits(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<(), Error> {
    match (method, args) {
        ("join", [values, ..]) => Room::of(state).take_items(values, text.len()),
        ("split" | "rsplit", [separator, ..]) => pieces_fit(state, text, separator.as_str()),
        ("split" | "rsplit" | "splitlines", _) => pieces_fit(state, text, None),
        ("format", _) => fields_fit(state, text, '{', args),
        _ => Ok(()),
    }
}

/// Text that may still be made.
struct Room {
    num_bytes: usize,
}

impl Room {
    fn of(state: &State) -> Self {
        let fuel = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
        let num_bytes = fuel.saturating_mul(BYTES_PER_FUEL).min(MAX_BYTES);
        Self { num_bytes: usize::try_from(num_bytes).unwrap_or(usize::MAX) }
    }

    fn take(&mut self, num_bytes: usize) -> Result<usize, Error> {
        self.num_bytes = self.num_bytes.checked_sub(num_bytes).ok_or_else(out_of_fuel)?;
        Ok(num_bytes)
    }

    fn take_value(&mut self, value: &Value) -> Result<usize, Error> {
        match value.as_str() {
            Some(text) => self.take(text.len()),
            None => self.take_written(format_args!("{value}")),
        }
    }

    /// Writes it to nowhere, and no further than there is room.
    fn take_written(&mut self, what: fmt::Arguments) -> Result<usize, Error> {
        let before = self.num_bytes;
        self.write_fmt(what).map_err(|_| out_of_fuel())?;
        Ok((before - self.num_bytes) / BYTES_PER_WRITTEN_BYTE)
    }

    /// The texts of all that is in a value, with so much between them.
    fn take_items(&mut self, values: &Value, separator_bytes: usize) -> Result<(), Error> {
        // What is no list is the callee's to refuse.
        for item in values.try_iter().into_iter().flatten() {
            self.take(separator_bytes.max(MIN_ITEM_BYTES))?;
            self.take_value(&item)?;
        }
        Ok(())
    }
}

impl fmt::Write for Room {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let num_bytes = text.len().saturating_mul(BYTES_PER_WRITTEN_BYTE);
        self.num_bytes = self.num_bytes.checked_sub(num_bytes).ok_or(fmt::Error)?;
        Ok(())
    }
}

fn write_fitting(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    ensure_shown_fits(state, value)?;
    minijinja::escape_formatter(out, state, value)
}

/// The same as [`ensure_fits`] where the value is escaped if the template says so.
pub(crate) fn ensure_shown_fits(state: &State, value: &Value) -> Result<(), Error> {
    match state.auto_escape() {
        AutoEscape::None => ensure_fits(state, value).map(drop),
        _ => escaped_fits(state, std::slice::from_ref(value)),
    }
}

/// Says whether the texts of a call's arguments fit, and what is made of them.
type Fits = fn(&State, &[Value]) -> Result<(), Error>;

fn no_text(_: &State, _: &[Value]) -> Result<(), Error> {
    Ok(())
}

fn fits(state: &State, args: &[Value]) -> Result<(), Error> {
    let mut room = Room::of(state);
    args.iter().try_for_each(|arg| room.take_value(arg).map(drop))
}

/// A text cut at what is told or, without that, at all that is white.
fn split_fits(state: &State, args: &[Value]) -> Result<(), Error> {
    fits(state, args)?;
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    pieces_fit(state, text, args.get(1).and_then(Value::as_str))
}

/// Each piece is a slot of a list, which is there before it is paid for.
fn pieces_fit(state: &State, text: &str, separator: Option<&str>) -> Result<(), Error> {
    let num_pieces = match separator.filter(|separator| !separator.is_empty()) {
        Some(separator) => text.matches(separator).count(),
        None => text.chars().filter(|c| c.is_whitespace()).count(),
    };
    Room::of(state).take(num_pieces.saturating_mul((BYTES_PER_FUEL / SLOTS_PER_FUEL) as usize)).map(drop)
}

fn escaped_fits(state: &State, args: &[Value]) -> Result<(), Error> {
    let mut room = Room::of(state);
    room.num_bytes /= MAX_ESCAPED_BYTES as usize;
    args.iter().try_for_each(|arg| room.take_value(arg).map(drop))
}

fn pretty_fits(state: &State, args: &[Value]) -> Result<(), Error> {
    let mut room = Room::of(state);
    args.iter().try_for_each(|arg| room.take_written(format_args!("{arg:#?}")).map(drop))
}

fn joined_fits(state: &State, args: &[Value]) -> Result<(), Error> {
    let (values, joiner, _, kwargs): (&Value, Option<&Value>, Option<&Value>, Kwargs) = from_args(args)?;
    let joiner = joiner.cloned().or(kwargs.peek("d").ok());
    let joiner_bytes = joiner.map_or(Ok(0), |joiner| ensure_fits(state, &joiner))?;
    Room::of(state).take_items(values, joiner_bytes)
}

/// Texts are added one by one: each sum is another text.
fn summed_fits(state: &State, args: &[Value]) -> Result<(), Error> {
    match args.first() {
        Some(values) => Room::of(state).take_items(values, 0),
        None => Ok(()),
    }
}

fn formatted_fits(state: &State, args: &[Value]) -> Result<(), Error> {
    match args {
        [format, args @ ..] => fields_fit(state, format.as_str().unwrap_or_default(), '%', args),
        [] => Ok(()),
    }
}

/// Each field may be any of the values.
fn fields_fit(state: &State, format: &str, sign: char, args: &[Value]) -> Result<(), Error> {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    // What is too long for one is wide, or no width at all.
    let widths = numbers.map(|digits| digits.parse().unwrap_or(MAX_FIELD_BYTES).min(MAX_FIELD_BYTES));
    let mut largest = widths.max().unwrap_or(0).max(MAX_NUMBER_BYTES);
    for arg in args {
        largest = largest.max(ensure_fits(state, arg)?);
    }
    let num_fields = format.matches(sign).count();
    Room::of(state).take(format.len().saturating_add(num_fields.saturating_mul(largest))).map(drop)
}

fn indented_fits(state: &State, args: &[Value]) -> Result<(), Error> {
    let (value, width, _, _, kwargs): (&Value, Option<usize>, Option<&Value>, Option<&Value>, Kwargs) =
        from_args(args)?;
    let width = match width {
        Some(width) => width,
        None => kwargs.peek::<Option<usize>>("width").ok().flatten().unwrap_or(4),
    };
    let num_bytes = ensure_fits(state, value)?;
    // The text of what is none has as many lines as it has line ends, which are known when it is there.
    let num_lines = value.as_str().map_or(num_bytes, |text| text.matches('\n').count()) + 1;
    Room::of(state).take(width.saturating_mul(num_lines).saturating_add(num_bytes)).map(drop)
}

/// The engine's own filter takes the count also by its name, but is not to be had.
fn replace(state: &mut State, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (value, from, to, count, kwargs): (&Value, &Value, &Value, Option<i64>, Kwargs) = from_args(&args)?;
    let (value, from, to) =
        (StringInput::new(state, value)?, StringInput::new(state, from)?, StringInput::new(state, to)?);
    let count = count.or(kwargs.get::<Option<i64>>("count")?);
    kwargs.assert_all_used()?;
    // A negative one is none.
    let Some(count) = count.and_then(|count| usize::try_from(count).ok()) else {
        return filters::replace(state, value, from, to);
    };
    let escapes = !matches!(state.auto_escape(), AutoEscape::None);
    if escapes && (value.is_safe() || from.is_safe() || to.is_safe()) {
        let problem = "replace: a count is not served where some of the text is escaped already";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    let num_found = value.as_str().matches(from.as_str()).take(count).count();
    Room::of(state).take(value.as_str().len().saturating_add(num_found.saturating_mul(to.as_str().len())))?;
    Ok(Value::from(value.as_str().replacen(from.as_str(), to.as_str(), count)))
}

fn add_filter<F, Rv, Args>(environment: &mut Environment<'static>, name: &'static str, fits: Fits, filter: F)
where
    F: Function<Rv, Args>,
    Rv: FunctionResult,
    Args: for<'a> FunctionArgs<'a>,
{
    let filter = Value::from_function(filter);
    let asking = move |state: &mut State, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
        let args = args.into_values();
        fits(state, &args)?;
        let made = filter.call(state, &args)?;
        pay(state, &made)?;
        Ok(made)
    };
    environment.add_filter(name, asking);
}

fn add_test(environment: &mut Environment<'static>, name: &'static str, test: Value) {
    let asking = move |state: &mut State, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
        let args = args.into_values();
        // What is looked for in a list is no text.
        if args.last().is_some_and(|last| last.as_str().is_some()) {
            fits(state, &args[..args.len() - 1])?;
        } else if name != "in" {
            fits(state, &args)?;
        }
        test.call(state, &args)
    };
    environment.add_test(name, asking);
}

/// Within one step of a template, many such may be made.
fn pay(state: &State, made: &Value) -> Result<(), Error> {
    let fuel = match made.as_str() {
        Some(text) => text.len() as u64 / BYTES_PER_FUEL,
        None => made.len().unwrap_or(0) as u64 / SLOTS_PER_FUEL,
    };
    state.consume_fuel(fuel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jinja;

    fn rendered(source: &str) -> Result<String, Error> {
        let mut environment = jinja::environment();
        environment.set_unknown_method_callback(|state, value, method, args| {
            if let Some(text) = value.as_str() {
                ensure_method_fits(state, text, method, args)?;
            }
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        });
        environment.set_fuel(Some(1_000_000));
        environment.add_template_owned("t", jinja::guarded(source))?;
        environment.get_template("t")?.render(())
    }

    /// Each took a hundred gigabytes at once, which ended the run.
    #[test]
    fn a_small_list_whose_text_is_huge_is_an_error() {
        let lists = "{% set s = 'a' * 1000000 %}{% set x = [s] * 100000 %}{% set m = {'k': x, 'n': 1} %}\
                     {% set f = '{0}' * 1000 %}{% set p = '%(k)s' * 1000 %}";
        for source in [
            "{{ x }}",
            "{{ m }}",
            "{{ x|join }}",
            "{{ x|join(', ') }}",
            "{{ ([''] * 1000)|join(s) }}",
            "{{ ([''] * 1000)|join(d=s) }}",
            "{{ x ~ '' }}",
            "{{ '' ~ 1 ~ x ~ '' }}",
            "{{ x in 'abc' }}",
            "{{ 1 if x not in 'abc' else 2 }}",
            "{{ x is in('abc') }}",
            "{{ x is startingwith('a') }}",
            "{{ 'a' is endingwith(x) }}",
            "{{ x|string|length }}",
            "{{ x|pprint }}",
            "{{ '%s'|format(x) }}",
            "{{ p|format(k=s) }}",
            "{{ f.format(s) }}",
            "{{ (',' * 5000000).split(',')|length }}",
            "{{ (',' * 5000000).rsplit(',')|length }}",
            "{{ (' ' * 5000000).split()|length }}",
            "{{ ('\n' * 5000000).splitlines()|length }}",
            "{{ (',' * 5000000)|split(',')|length }}",
            "{{ ('\n' * 5000000)|lines|length }}",
            "{{ '{}'.format(x) }}",
            "{{ ('{:>9999}' * 100000).format(1) }}",
            "{{ ', '.join(x) }}",
            "{{ s.join([''] * 1000) }}",
            "{{ x|replace('a', 'b') }}",
            "{{ s|replace('a', s, count=1000) }}",
            "{{ x|indent }}",
            "{{ ('\\n' * 100000)|indent(100000) }}",
            "{{ ('\\n' * 100000)|indent(width=100000) }}",
            "{{ x|upper }}{{ 1 }}",
            "{{ x|lower }}{{ 1 }}",
            "{{ x|title }}",
            "{{ x|capitalize }}",
            "{{ x|trim }}",
            "{{ 'a'|trim(x) }}",
            "{{ x|safe }}",
            "{{ x|escape }}",
            "{{ x|e }}",
            "{{ x|split('a') }}",
            "{{ x|lines }}",
            "{{ x|sum(start='') }}",
            "{{ x|map('upper')|list }}",
            "{{ ([x] * 100)|map('join')|list|length }}",
            "{{ ([[s] * 50] * 100000)|map('join')|list|length }}",
            "{{ ([s] * 100000)|map('replace', 'b', s)|list|length }}",
            "{{ ([s] * 100000)|map('indent', 1000000, true)|list|length }}",
            "{{ (['%s%s%s%s'] * 100000)|map('format', s, s, s, s)|list|length }}",
            "{{ (['a,' * 100000] * 100000)|map('split', ',')|list|length }}",
            "{{ x|chain(x)|join }}",
            "{{ (x + x)|join }}",
            "{{ x|map('string')|join }}",
            "{{ x|zip(x)|join }}",
            "{{ x|batch(10)|join }}",
            "{{ m.items()|join }}",
            "{{ m|dictsort|join }}",
            "{% set y = [x, x] %}{% set y = [y, y] %}{% set y = [y, y] %}{{ y }}",
            "{% autoescape true %}{{ x }}{% endautoescape %}",
            "{% autoescape true %}{{ x ~ 'a'|safe }}{% endautoescape %}",
            "{% autoescape true %}{{ ('<' * 30000000) }}{% endautoescape %}",
            "{% filter upper %}{{ x }}{% endfilter %}",
            "{% set y %}{{ x }}{% endset %}",
            "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(x) }}",
            "{{ debug() }}",
        ] {
            let error = rendered(&format!("{lists}{source}")).expect_err(source);
            let is_debug = source.contains("debug");
            let expected = if is_debug { ErrorKind::UnknownFunction } else { ErrorKind::OutOfFuel };
            assert_eq!(error.kind(), expected, "{source}: {error}");
        }
    }

    /// With two references in each, a text of 2⁶⁴ signs.
    #[test]
    fn lists_that_share_their_items_are_gone_through_no_further_than_they_fit() {
        let doubled = "{% set x = [x, x] %}".repeat(64);
        for show in ["{{ x }}", "{{ x ~ '' }}", "{{ x|string }}", "{{ x|pprint }}", "{{ x|join }}"] {
            let error = rendered(&format!("{{% set x = 'a' %}}{doubled}{show}")).expect_err("too long");
            assert_eq!(error.kind(), ErrorKind::OutOfFuel, "{show}");
        }
    }

    #[test]
    fn what_fits_is_as_it_was() {
        let plain = |source: &str| {
            let mut environment = Environment::new();
            environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            environment.render_str(source, ())
        };
        for source in [
            "{{ [1, 'a', 1.5, none] }}{{ {'k': ['v']} }}{{ [1, 2]|join('-') }}{{ [1, 2]|join(d='+') }}",
            "{{ [{'a': 1}, {'a': 2}]|join(', ', attribute='a') }}{{ 'abc'|join('.') }}",
            "{{ 'aXbX'|replace('X', 'y') }}{{ 'aXbX'|replace('X', 'y', 1) }}{{ 'aXbX'|replace('X', 'y', count=1) }}",
            "{{ 'aXbX'|replace('X', 'y', count=-1) }}{{ 12|replace(1, 3) }}",
            "{{ 'a\nb'|indent }}{{ 'a\nb'|indent(2, true) }}{{ 'a\n\nb'|indent(width=1, blank=true, first=true) }}",
            "{{ '%s and %05.1f'|format('x', 2.5) }}{{ '%(a)s'|format(a=[1]) }}{{ '{} {x}'.format(1, x='y') }}",
            "{{ 'ab'|upper }}{{ 'AB'|lower }}{{ 'ab cd'|title }}{{ 'ab'|capitalize }}{{ ' x '|trim }}{{ 'xax'|trim('x') }}",
            "{{ 'a,b'|split(',')|list }}{{ 'a\nb'|lines }}{{ 'abc'|list }}{{ [1,2,3]|batch(2, 0)|list }}{{ [1,2,3]|slice(2)|list }}",
            "{{ [1, 2]|sum }}{{ [1]|sum(start=3) }}{{ {'a': [1]}|pprint }}{{ '<'|e }}{{ '<'|safe }}{{ 1|string }}",
            "{{ ['a', 'b']|map('upper')|join }}{{ ','.join(['a', 1]) }}{{ 'x' is in('xy') }}{{ 1 is in([1]) }}",
            "{{ 'ab' is startingwith('a') }}{{ 'ab' is endingwith('a') }}{% autoescape true %}{{ '<' }}{{ ['<'] }}{% endautoescape %}",
            "{{ [] in [[]] }}{{ {}|string }}{{ range(3)|string }}{{ (1,)|string }}",
        ] {
            assert_eq!(rendered(source).expect(source), plain(source).expect(source), "{source}");
        }
        // What is refused is refused for the same reason.
        for source in
            ["{{ 1|join }}", "{{ ''|replace }}", "{{ 'a'|replace('a', 'b', 1, 2) }}", "{{ 'a'|indent(x=1) }}"]
        {
            let kind = |rendered: Result<String, Error>| rendered.map_err(|error| error.kind());
            assert_eq!(kind(rendered(source)), kind(plain(source)), "{source}");
        }
    }
}
