//! llama.cpp's grammars, GBNF, in llguidance's Lark.
//!
//! Owns reading them and saying the same in the other language. As in llguidance's own converter, a rule that
//! refers to no rule but such ones becomes a terminal, which matches as long a text as it can.

use std::{collections::HashMap, fmt::Write, iter::Peekable, str::CharIndices};

use super::{GuideError, constraint::literal};

/// Brackets that may be nested; Lark has a bound as well.
const MAX_DEPTH: usize = 50;

/// Whether a grammar is of this kind: its rules are `name ::= …`.
pub(super) fn is_gbnf(text: &str) -> bool {
    text.lines().any(|line| {
        let name = line.split_once("::=").map_or("", |(name, _)| name.trim());
        !name.is_empty() && name.chars().all(is_of_name)
    })
}

/// Says a grammar in Lark.
pub(super) fn to_lark(text: &str) -> Result<String, GuideError> {
    let mut reader = Reader { text, chars: text.char_indices().peekable() };
    let mut rules: Vec<(String, Expression)> = Vec::new();
    reader.skip_space();
    while reader.chars.peek().is_some() {
        let (name, expression) = reader.rule()?;
        if rules.iter().any(|(other, _)| *other == name) {
            return Err(problem(&format!("the rule {name} is there twice")));
        }
        rules.push((name, expression));
    }
    let terminals = terminals(&rules)?;
    let names: HashMap<&str, String> = (0..)
        .zip(&rules)
        .map(|(place, (name, _))| (name.as_str(), lark_name(name, place, terminals[place])))
        .collect();
    let root = names.get("root").ok_or_else(|| problem("there is no rule root"))?;
    let mut lark = format!("start: {root}\n");
    for (name, expression) in &rules {
        let _ = writeln!(lark, "{}: {}", names[name.as_str()], expression.lark(&names));
    }
    Ok(lark)
}

/// What stands behind `::=`.
#[derive(Debug)]
enum Expression {
    Literal(String),
    /// A regular expression for one character.
    Character(String),
    Rule(String),
    Sequence(Vec<Expression>),
    OneOf(Vec<Expression>),
    Repeated {
        what: Box<Expression>,
        at_least: u32,
        at_most: Option<u32>,
    },
}

impl Expression {
    fn lark(&self, names: &HashMap<&str, String>) -> String {
        let joined = |parts: &[Expression], by: &str| {
            parts.iter().map(|part| part.lark(names)).collect::<Vec<_>>().join(by)
        };
        match self {
            Self::Literal(text) => literal(text),
            Self::Character(expression) => format!("/{expression}/"),
            Self::Rule(name) => names[name.as_str()].clone(),
            Self::Sequence(parts) if parts.is_empty() => "\"\"".to_owned(),
            Self::Sequence(parts) => joined(parts, " "),
            Self::OneOf(parts) => format!("({})", joined(parts, " | ")),
            Self::Repeated { what, at_least, at_most } => {
                let most = at_most.map_or_else(String::new, |most| most.to_string());
                format!("({}){{{at_least},{most}}}", what.lark(names))
            }
        }
    }

    /// Whether all rules that it refers to meet a condition.
    fn refers_only(&self, condition: &impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Literal(_) | Self::Character(_) => true,
            Self::Rule(name) => condition(name),
            Self::Sequence(parts) | Self::OneOf(parts) => {
                parts.iter().all(|part| part.refers_only(condition))
            }
            Self::Repeated { what, .. } => what.refers_only(condition),
        }
    }
}

/// Which rules are terminals: not the root, and nothing that comes back to itself.
fn terminals(rules: &[(String, Expression)]) -> Result<Vec<bool>, GuideError> {
    let places: HashMap<&str, usize> =
        rules.iter().enumerate().map(|(place, (name, _))| (name.as_str(), place)).collect();
    for (name, expression) in rules {
        if !expression.refers_only(&|other| places.contains_key(other)) {
            return Err(problem(&format!("the rule {name} refers to a rule that is not there")));
        }
    }
    let mut terminals = vec![false; rules.len()];
    loop {
        let found = rules.iter().enumerate().find(|(place, (name, expression))| {
            name != "root" && !terminals[*place] && expression.refers_only(&|other| terminals[places[other]])
        });
        match found {
            Some((place, _)) => terminals[place] = true,
            None => return Ok(terminals),
        }
    }
}

/// Lark tells terminals by their case; numbers keep apart what only case or dashes did.
fn lark_name(name: &str, place: usize, is_terminal: bool) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    match is_terminal {
        true => format!("T{place}_{}", name.to_ascii_uppercase()),
        false => format!("r{place}_{}", name.to_ascii_lowercase()),
    }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '-' || c == '_'
}

fn problem(what: &str) -> GuideError {
    GuideError::NotServed(format!("GBNF: {what}"))
}

struct Reader<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl Reader<'_> {
    fn rule(&mut self) -> Result<(String, Expression), GuideError> {
        let name = self.name();
        self.skip_space();
        if name.is_empty() || !self.skips_arrow() {
            return Err(self.unexpected("a rule, `name ::= …`"));
        }
        let expression = self.alternatives(0)?;
        match self.chars.peek() {
            Some((_, ')')) => Err(self.unexpected("no bracket")),
            _ => Ok((name, expression)),
        }
    }

    fn alternatives(&mut self, depth: usize) -> Result<Expression, GuideError> {
        if depth > MAX_DEPTH {
            return Err(problem(&format!("more than {MAX_DEPTH} brackets are nested")));
        }
        let mut alternatives = vec![self.sequence(depth)?];
        while self.takes('|') {
            alternatives.push(self.sequence(depth)?);
        }
        Ok(match alternatives.len() {
            1 => alternatives.swap_remove(0),
            _ => Expression::OneOf(alternatives),
        })
    }

    fn sequence(&mut self, depth: usize) -> Result<Expression, GuideError> {
        let mut parts = Vec::new();
        loop {
            self.skip_space();
            let part = match self.chars.peek().map(|(_, c)| *c) {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.chars.next();
                    Expression::Character("(?s:.)".to_owned())
                }
                Some('(') => {
                    self.chars.next();
                    let inner = self.alternatives(depth + 1)?;
                    if !self.takes(')') {
                        return Err(self.unexpected("`)`"));
                    }
                    Expression::OneOf(vec![inner])
                }
                Some(c) if is_of_name(c) && !self.is_at_rule() => Expression::Rule(self.name()),
                Some(c) if is_of_name(c) => break,
                None | Some('|' | ')') => break,
                Some(_) => return Err(self.unexpected("a literal, a class, a rule or a bracket")),
            };
            let part = self.repeated(part)?;
            parts.push(part);
        }
        Ok(Expression::Sequence(parts))
    }

    fn repeated(&mut self, mut part: Expression) -> Result<Expression, GuideError> {
        loop {
            let (at_least, at_most) = match self.chars.peek().map(|(_, c)| *c) {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.chars.next();
                    let at_least = self.number().unwrap_or(0);
                    let at_most = if self.takes(',') { self.number() } else { Some(at_least) };
                    if self.chars.peek().map(|(_, c)| *c) != Some('}') {
                        return Err(self.unexpected("`}`"));
                    }
                    (at_least, at_most)
                }
                _ => return Ok(part),
            };
            self.chars.next();
            part = Expression::Repeated { what: Box::new(part), at_least, at_most };
        }
    }

    fn literal(&mut self) -> Result<Expression, GuideError> {
        self.chars.next();
        let mut text = String::new();
        loop {
            match self.character()? {
                ('"', false) => return Ok(Expression::Literal(text)),
                (c, _) => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<Expression, GuideError> {
        self.chars.next();
        let mut class = String::from("[");
        if matches!(self.chars.peek(), Some((_, '^'))) {
            self.chars.next();
            class.push('^');
        }
        loop {
            match self.character()? {
                (']', false) => break,
                // Between two characters it says from where to where.
                ('-', false) if class.ends_with('}') && !matches!(self.chars.peek(), Some((_, ']'))) => {
                    class.push('-');
                }
                (c, _) => _ = write!(class, "\\x{{{:x}}}", u32::from(c)),
            }
        }
        Ok(Expression::Character(class + "]"))
    }

    /// The next character, and whether it was escaped.
    fn character(&mut self) -> Result<(char, bool), GuideError> {
        let c =
            self.chars.next().map(|(_, c)| c).ok_or_else(|| problem("it ends within quotes or a class"))?;
        if c != '\\' {
            return Ok((c, false));
        }
        let escaped = match self.chars.next().map(|(_, c)| c) {
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some('x') => self.code_point(2),
            Some('u') => self.code_point(4),
            Some('U') => self.code_point(8),
            Some(c @ ('"' | '\\' | '[' | ']' | '-' | '^' | '/')) => Some(c),
            _ => None,
        };
        escaped.map(|c| (c, true)).ok_or_else(|| self.unexpected("an escape that GBNF has"))
    }

    fn code_point(&mut self, num_digits: usize) -> Option<char> {
        let digits: String = self.chars.by_ref().take(num_digits).map(|(_, c)| c).collect();
        let code = (digits.len() == num_digits).then(|| u32::from_str_radix(&digits, 16).ok())??;
        char::from_u32(code)
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some((_, c)) = self.chars.next_if(|(_, c)| is_of_name(*c)) {
            name.push(c);
        }
        name
    }

    fn number(&mut self) -> Option<u32> {
        self.skip_space();
        let mut digits = String::new();
        while let Some((_, c)) = self.chars.next_if(|(_, c)| c.is_ascii_digit()) {
            digits.push(c);
        }
        self.skip_space();
        digits.parse().ok()
    }

    /// Whether a rule begins here, and not a reference to one.
    fn is_at_rule(&mut self) -> bool {
        let rest = self.rest().trim_start_matches(is_of_name);
        rest.trim_start().starts_with("::=")
    }

    fn skips_arrow(&mut self) -> bool {
        let is_there = self.rest().starts_with("::=");
        if is_there {
            self.chars.nth(2);
        }
        is_there
    }

    fn takes(&mut self, wanted: char) -> bool {
        self.skip_space();
        self.chars.next_if(|(_, c)| *c == wanted).is_some()
    }

    /// Skips white space and comments.
    fn skip_space(&mut self) {
        while let Some((_, c)) = self.chars.next_if(|(_, c)| c.is_whitespace() || *c == '#') {
            if c == '#' {
                while self.chars.next_if(|(_, c)| *c != '\n').is_some() {}
            }
        }
    }

    fn rest(&mut self) -> &str {
        let at = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        &self.text[at..]
    }

    fn unexpected(&mut self, wanted: &str) -> GuideError {
        let at = self.text.len() - self.rest().len();
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        problem(&format!("expected {wanted} at line {line}, column {column}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammar_of_this_kind_is_told_from_lark() {
        assert!(is_gbnf("# yes or no\nroot ::= \"yes\" | no\nno ::= \"no\""));
        assert!(!is_gbnf("start: \"a ::= b\""));
        assert!(!is_gbnf("start: /::=/"));
    }

    #[test]
    fn rules_are_said_in_lark() {
        let gbnf = "# a list\nroot ::= item (\", \" item)*\n\nitem ::= word | \"(\" root \")\"\n\
                    word ::= [a-z]+ \"\\n\"? # done\nany-One ::= . [^\\x22\\]-] x{2,3}\nx ::= \"\" | \"\\u00e9\"";
        let expected = "start: r0_root\nr0_root: r1_item ((\", \" r1_item)){0,}\n\
                        r1_item: (T2_WORD | \"(\" r0_root \")\")\n\
                        T2_WORD: (/[\\x{61}-\\x{7a}]/){1,} (\"\\n\"){0,1}\n\
                        T3_ANY_ONE: /(?s:.)/ /[^\\x{22}\\x{5d}\\x{2d}]/ (T4_X){2,3}\n\
                        T4_X: (\"\" | \"é\")\n";
        assert_eq!(to_lark(gbnf).as_deref(), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (gbnf, problem) in [
            ("root ::= \"a", "it ends within quotes"),
            ("root ::= [a", "it ends within quotes or a class"),
            ("root ::= a", "refers to a rule that is not there"),
            ("top ::= \"a\"", "there is no rule root"),
            ("root ::= \"a\"\nroot ::= \"b\"", "is there twice"),
            ("root ::= (\"a\"", "expected `)` at line 1, column 14"),
            ("root ::= \"a\" )", "expected no bracket"),
            ("root ::= \"a\"\n\n  ::= \"b\"", "at line 3, column 3"),
            ("root ::= \"\\q\"", "an escape"),
            ("root ::= \"\\u12\"", "an escape"),
            ("root ::= \"a\"{1", "expected `}`"),
            (&format!("root ::= {}\"a\"", "(".repeat(100_000)), "brackets are nested"),
        ] {
            let told = to_lark(gbnf).expect_err("it is wrong").to_string();
            assert!(told.contains(problem), "{told}");
        }
    }
}
