//! The operators that make text of values: `a ~ b`, and `a in b` where b is a text.
//!
//! Owns having them ask first whether that text fits, which the template engine does not for lists and mappings. It
//! has no place to ask at, so `a ~ b ~ c` becomes the call of a function, and what is looked for with `in` the
//! argument of one. What no template can say is left as it is, for the engine to refuse.

use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value, value::Rest};

use super::{
    tags, texts,
    tokens::{Kind, Token, tokens},
};

/// Functions that no template has names for.
pub(super) const JOINED: &str = "_joined_";
pub(super) const CHECKED: &str = "_fitting_";

/// Makes the functions known that [`joined`] has the template call.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function(JOINED, concatenation);
    environment.add_function(CHECKED, |state: &State, value: Value| {
        texts::ensure_fits(state, &value).map(|_| value)
    });
}

/// A template in which these operators are calls.
pub(super) fn joined(source: &str) -> String {
    tags::rewritten(source, |tag| {
        let edits = Scan::of(tag.inner, tag.is_block);
        (!edits.is_empty()).then(|| [tag.open, &applied(tag.inner, edits), tag.close].concat())
    })
}

/// What is put into a tag instead of so many bytes; where several are at one place, in this order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edit {
    at: usize,
    order: u8,
    text: String,
    num_bytes: usize,
}

impl Edit {
    /// The outer call's order is the lower.
    fn call(at: usize, order: u8, name: &str) -> Self {
        Self { at, order, text: format!("{name}("), num_bytes: 0 }
    }

    fn comma(at: usize) -> Self {
        Self { at, order: 1, text: ",".to_owned(), num_bytes: 1 }
    }

    fn end_of_call(at: usize) -> Self {
        Self { at, order: 0, text: ")".to_owned(), num_bytes: 0 }
    }
}

fn applied(inner: &str, mut edits: Vec<Edit>) -> String {
    edits.sort();
    let mut out = String::with_capacity(inner.len() + 16 * edits.len());
    let mut at = 0;
    for edit in edits {
        out.push_str(&inner[at..edit.at]);
        out.push_str(&edit.text);
        at = edit.at + edit.num_bytes;
    }
    out.push_str(&inner[at..]);
    out
}

/// Puts values together as `~` does.
fn concatenation(state: &mut State, operands: Rest<Value>) -> Result<Value, Error> {
    let is_strict = state.undefined_behavior() == UndefinedBehavior::Strict;
    if is_strict && operands.iter().any(Value::is_undefined) {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    texts::ensure_all_fit(state, &operands)?;
    let escapes = !matches!(state.auto_escape(), AutoEscape::None);
    let num_safe = operands.iter().filter(|operand| operand.is_safe()).count();
    let mut text = String::new();
    for operand in operands.iter() {
        match operand.as_str() {
            _ if escapes && num_safe > 0 && !operand.is_safe() => {
                text.push_str(&state.format(operand.clone())?)
            }
            Some(operand) => text.push_str(operand),
            None => text.push_str(&operand.to_string()),
        }
    }
    let is_safe = num_safe == operands.len() || (escapes && num_safe > 0);
    Ok(if is_safe { Value::from_safe_string(text) } else { Value::from(text) })
}

/// One way through the tokens of a tag.
struct Scan<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token<'a>>>,
    edits: Vec<Edit>,
    /// The `in` of a loop is no operator.
    is_before_loop: bool,
}

/// Operands at one level of brackets.
struct Level {
    /// Where what is left of an `in` begins.
    side: Option<usize>,
    /// Where the operands of `~` begin, and where each `~` is.
    chain: Option<usize>,
    tildes: Vec<usize>,
    /// Where the last token ends.
    end: usize,
    expects_operand: bool,
    after: After,
}

/// What the last token was, where the next one's part depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// `.` or `|`.
    Member,
    /// The name of a test; an argument without brackets may follow.
    Test,
    Text,
    Other,
}

impl Level {
    fn new() -> Self {
        Self {
            side: None,
            chain: None,
            tildes: Vec::new(),
            end: 0,
            expects_operand: true,
            after: After::Other,
        }
    }

    fn begin_operand(&mut self, start: usize) {
        self.side.get_or_insert(start);
        self.chain.get_or_insert(start);
    }

    /// No operand stands before this: the engine says so, or it is the star of a list of arguments.
    fn give_up(&mut self) {
        (self.chain, self.side) = (None, None);
        self.tildes.clear();
    }

    /// Ends the operands of `~`, and makes a call of them.
    fn end_chain(&mut self, edits: &mut Vec<Edit>) {
        let (chain, tildes) = (self.chain.take(), std::mem::take(&mut self.tildes));
        let (Some(chain), false, false) = (chain, tildes.is_empty(), self.expects_operand) else { return };
        edits.push(Edit::call(chain, 3, JOINED));
        edits.extend(tildes.into_iter().map(Edit::comma));
        edits.push(Edit::end_of_call(self.end));
    }

    /// Ends what stands between operators that compare; returns where it began.
    fn end_side(&mut self, edits: &mut Vec<Edit>) -> Option<usize> {
        self.end_chain(edits);
        self.side.take()
    }
}

impl<'a> Scan<'a> {
    fn of(inner: &'a str, is_block: bool) -> Vec<Edit> {
        let mut tokens = tokens(inner).into_iter().peekable();
        let is_before_loop = is_block && tokens.next().is_some_and(|name| name.text == "for");
        let mut scan = Self { tokens, edits: Vec::new(), is_before_loop };
        // Where brackets do not match, the engine says so.
        if scan.level(true).is_some() { scan.edits } else { Vec::new() }
    }

    /// Goes through what is within brackets; returns where they end.
    fn level(&mut self, is_outermost: bool) -> Option<usize> {
        let mut level = Level::new();
        while let Some(token) = self.tokens.next() {
            let after = std::mem::replace(&mut level.after, After::Other);
            let mut end = token.end();
            match token.kind {
                Kind::Close => {
                    level.end_side(&mut self.edits);
                    return (!is_outermost).then_some(end);
                }
                Kind::Open => {
                    if level.expects_operand {
                        level.begin_operand(token.start);
                    }
                    level.expects_operand = false;
                    end = self.level(false)?;
                }
                Kind::Word | Kind::Number if after == After::Member => {}
                Kind::Sign if after == After::Test => level.after = After::Test,
                Kind::Number | Kind::Text if after == After::Test => {}
                Kind::Word if after == After::Test && !matches!(token.text, "and" | "or" | "else" | "is") => {
                }
                Kind::Member => level.after = After::Member,
                Kind::Tilde | Kind::Factor if level.expects_operand => level.give_up(),
                Kind::Tilde => {
                    level.tildes.push(token.start);
                    level.expects_operand = true;
                }
                Kind::Factor => level.expects_operand = true,
                Kind::Sign if level.expects_operand => level.begin_operand(token.start),
                Kind::Sign => {
                    level.end_chain(&mut self.edits);
                    level.expects_operand = true;
                }
                Kind::Word if token.text == "is" && !level.expects_operand => {
                    end = self.name_of_test(end);
                    level.after = After::Test;
                }
                Kind::Word if matches!(token.text, "and" | "or" | "if" | "else" | "not" | "in") => {
                    self.keyword(token, &mut level, is_outermost);
                }
                Kind::Text if after == After::Text => level.after = After::Text,
                Kind::Word | Kind::Number | Kind::Text => {
                    // A name beside another is a word of the tag, such as `recursive`.
                    if !level.expects_operand {
                        level.end_side(&mut self.edits);
                    }
                    level.begin_operand(token.start);
                    level.expects_operand = false;
                    if token.kind == Kind::Text {
                        level.after = After::Text;
                    }
                }
                Kind::Other => {
                    level.end_side(&mut self.edits);
                    level.expects_operand = true;
                }
            }
            level.end = end;
        }
        level.end_side(&mut self.edits);
        is_outermost.then_some(level.end)
    }

    fn keyword(&mut self, token: Token, level: &mut Level, is_outermost: bool) {
        let is_loop = token.text == "in" && is_outermost && std::mem::take(&mut self.is_before_loop);
        let looks_for = matches!(token.text, "in" | "not") && !level.expects_operand && !is_loop;
        let side = level.end_side(&mut self.edits);
        if let Some(side) = side.filter(|_| looks_for) {
            self.edits.push(Edit::call(side, 2, CHECKED));
            self.edits.push(Edit::end_of_call(level.end));
        }
        level.expects_operand = true;
    }

    /// Goes past what follows an `is`; returns where it ends.
    fn name_of_test(&mut self, end: usize) -> usize {
        let is_negated = self.tokens.next_if(|token| token.text == "not").map(|token| token.end());
        let mut end = is_negated.unwrap_or(end);
        while let Some(name) = self.tokens.next_if(|token| token.kind == Kind::Word) {
            end = name.end();
            let Some(dot) = self.tokens.next_if(|token| token.text == ".") else { break };
            end = dot.end();
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_become_calls_of_their_own_operands() {
        for (source, expected) in [
            ("{{ a ~ b }}", "{{ _joined_(a , b) }}"),
            ("{{- a~b~c -}}", "{{- _joined_(a,b,c) -}}"),
            ("{{ a * 2 ~ b ** 2 }}", "{{ _joined_(a * 2 , b ** 2) }}"),
            ("{{ a + b ~ c - d }}", "{{ a + _joined_(b , c) - d }}"),
            ("{{ -a ~ - b }}", "{{ _joined_(-a , - b) }}"),
            ("{{ a - -b ~ c }}", "{{ a - _joined_(-b , c) }}"),
            (
                "{{ a.b['c' ~ d](e ~ f)|g ~ 'h' 'i' }}",
                "{{ _joined_(a.b[_joined_('c' , d)](_joined_(e , f))|g , 'h' 'i') }}",
            ),
            ("{{ (a, b ~ c) ~ [d] }}", "{{ _joined_((a, _joined_(b , c)) , [d]) }}"),
            ("{{ x if a ~ b else c ~ d }}", "{{ x if _joined_(a , b) else _joined_(c , d) }}"),
            ("{{ not a ~ b == c ~ d and e }}", "{{ not _joined_(a , b) == _joined_(c , d) and e }}"),
            ("{{ a is divisibleby 3 ~ b }}", "{{ _joined_(a is divisibleby 3 , b) }}"),
            ("{{ a is not sameas -1 ~ b is defined }}", "{{ _joined_(a is not sameas -1 , b is defined) }}"),
            ("{{ a is defined and b ~ c }}", "{{ a is defined and _joined_(b , c) }}"),
            ("{% set x = a ~ b %}", "{% set x = _joined_(a , b) %}"),
            (
                "{% for x in a ~ b if x in c recursive %}",
                "{% for x in _joined_(a , b) if _fitting_(x) in c recursive %}",
            ),
            ("{% for in_ in [a in b] %}", "{% for in_ in [_fitting_(a) in b] %}"),
            ("{{ a + 1 in b }}", "{{ _fitting_(a + 1) in b }}"),
            ("{{ a ~ b not in c ~ d }}", "{{ _fitting_(_joined_(a , b)) not in _joined_(c , d) }}"),
            ("{% if not a in b or c not in d %}", "{% if not _fitting_(a) in b or _fitting_(c) not in d %}"),
            ("{% macro m(a, b='x' ~ y) %}", "{% macro m(a, b=_joined_('x' , y)) %}"),
            ("{% call(u) f(u ~ v) %}", "{% call(u) f(_joined_(u , v)) %}"),
            ("{{ f(*a, k=b ~ c, **d) }}", "{{ f(*a, k=_joined_(b , c), **d) }}"),
            ("{{ {a ~ b: c ~ d}[x ~ y:z] }}", "{{ {_joined_(a , b): _joined_(c , d)}[_joined_(x , y):z] }}"),
            ("{{ message.in ~ x|in }}", "{{ _joined_(message.in , x|in) }}"),
            ("{# a ~ b #}{{ 'a ~ b' }}{% raw %}{{ a ~ b }}{% endraw %}", ""),
            // What the engine refuses it still refuses.
            ("{{ a ~ }}{{ ~ b }}{{ a ~ * b }}{{ (a ~ b }}", ""),
            ("{{ a ~ b] }}", ""),
        ] {
            let expected = if expected.is_empty() { source } else { expected };
            assert_eq!(joined(source), expected, "{source}");
        }
    }

    /// With the functions in place of the operators, and without.
    #[test]
    fn what_they_make_is_what_the_operators_make() {
        let plain = Environment::new();
        let mut changed = Environment::new();
        add_to(&mut changed);
        for source in [
            "{{ 1 ~ 2 * 3 ~ '-' ~ 1.5 ~ none ~ true ~ missing }}",
            "{{ [1, 'a'] ~ {'k': 'v'} ~ (1, 2) ~ 'b'|upper }}",
            "{{ 'b' in 'abc' }}{{ 1 in [1] }}{{ 'x' not in {'x': 1} }}{{ 1 in 'a1' }}",
            "{% for a in 'x' ~ 'y' if a in 'x' %}{{ a ~ loop.index }}{% endfor %}",
            "{% autoescape true %}{{ '<' ~ '>' }}{{ '<'|safe ~ '>' ~ 1 }}{{ '<' ~ '>'|safe }}{% endautoescape %}",
            "{% macro m(a) %}{{ a ~ '!' }}{% endmacro %}{{ m('x') ~ m(1) }}",
            "{{ -1 ~ 2 ** 2 ~ 7 // 2 ~ 7 % 4 }}{{ 1 + 2 ~ '' == '3' }}",
            "{{ 'a' ~ 'b' is string }}{{ 3 is divisibleby 3 ~ '' }}",
        ] {
            let joined = joined(source);
            let expected = plain.render_str(source, ()).map_err(|error| error.kind());
            assert_eq!(changed.render_str(&joined, ()).map_err(|error| error.kind()), expected, "{joined}");
        }
    }
}
