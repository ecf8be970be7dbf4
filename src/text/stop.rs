//! Stop strings: where an answer ends although the model would go on.
//!
//! Owns matching them in text that comes in pieces, across the pieces' borders. The match that
//! ends first wins, the longest of those that end together; since that depends on the text alone,
//! so does the answer, not on how tokens cut it.

/// Why an answer is over before the model's own end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The stop string that matched.
    pub stop: String,
}

/// Watches one answer for its stop strings and holds back what may become one.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// The end of the text so far that is the beginning of a stop string.
    held: String,
    is_over: bool,
}

/// One stop string and how much of it the text so far ends with (Knuth, Morris and Pratt).
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// For every prefix: how long the longest proper prefix is that it also ends with.
    borders: Vec<usize>,
    num_matched: usize,
}

impl StopMatcher {
    /// Makes a matcher; empty stop strings are ignored.
    pub fn new(stops: &[String]) -> StopMatcher {
        let patterns = stops.iter().filter(|stop| !stop.is_empty()).map(|stop| Pattern::new(stop)).collect();
        StopMatcher { patterns, held: String::new(), is_over: false }
    }

    /// Takes the next piece of text; returns what is certainly part of the answer, and whether a
    /// stop string matched. After a match everything further is dropped.
    pub fn push(&mut self, text: &str) -> (String, Option<Stopped>) {
        if self.is_over {
            return (String::new(), None);
        }
        for (at, byte) in text.bytes().enumerate() {
            if let Some(stop) = self.step(byte) {
                self.is_over = true;
                let mut released = std::mem::take(&mut self.held);
                released.push_str(text.get(..=at).expect("a stop string ends where a character ends"));
                released.truncate(released.len() - stop.len());
                return (released, Some(Stopped { stop }));
            }
        }
        self.held.push_str(text);
        let num_held_bytes = self.patterns.iter().map(|pattern| pattern.num_matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - num_held_bytes);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// Ends the answer and returns the text held back.
    pub fn finish(&mut self) -> String {
        self.is_over = true;
        std::mem::take(&mut self.held)
    }

    /// Advances all patterns by one byte; returns the longest that is complete.
    fn step(&mut self, byte: u8) -> Option<String> {
        let mut complete: Option<&Pattern> = None;
        for pattern in &mut self.patterns {
            if pattern.step(byte) && complete.is_none_or(|other| pattern.text.len() > other.text.len()) {
                complete = Some(pattern);
            }
        }
        complete.map(|pattern| pattern.text.clone())
    }
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        let bytes = text.as_bytes();
        let mut borders = vec![0; bytes.len()];
        let mut border = 0;
        for i in 1..bytes.len() {
            while border > 0 && bytes[i] != bytes[border] {
                border = borders[border - 1];
            }
            border += usize::from(bytes[i] == bytes[border]);
            borders[i] = border;
        }
        Pattern { text: text.to_owned(), borders, num_matched: 0 }
    }

    /// Advances by one byte of the text; true when the pattern is complete.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.num_matched > 0 && bytes.get(self.num_matched) != Some(&byte) {
            self.num_matched = self.borders[self.num_matched - 1];
        }
        self.num_matched += usize::from(bytes.get(self.num_matched) == Some(&byte));
        self.num_matched == bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds the pieces; returns each release, the last one from the end, and the match.
    fn feed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut released = Vec::new();
        let mut stopped = None;
        for piece in pieces {
            let (text, stop) = matcher.push(piece);
            released.push(text);
            stopped = stopped.or(stop.map(|stop| stop.stop));
        }
        released.push(matcher.finish());
        (released, stopped)
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_possible_beginning_is_held_back() {
        assert_eq!(
            feed(&["END"], &["one E", "N", "E ", "x"]),
            (strings(&["one ", "", "ENE ", "x", ""]), None)
        );
        assert_eq!(feed(&["END"], &["one E", "N"]), (strings(&["one ", "", "EN"]), None));
        assert_eq!(
            feed(&["END"], &["one E", "ND two", " three"]),
            (strings(&["one ", "", "", ""]), Some("END".to_owned()))
        );
    }

    #[test]
    fn the_first_end_wins_then_the_longest() {
        assert_eq!(feed(&["abcd", "c"], &["xabcd"]).1.as_deref(), Some("c"));
        assert_eq!(feed(&["c", "bc"], &["xabcd"]), (strings(&["xa", ""]), Some("bc".to_owned())));
        assert_eq!(feed(&["\n\n", "🦀"], &["a\n", "🦀"]), (strings(&["a", "\n", ""]), Some("🦀".to_owned())));
        assert_eq!(feed(&["aab"], &["aaa", "ab"]), (strings(&["a", "a", ""]), Some("aab".to_owned())));
        assert_eq!(feed(&["", "é"], &["e\u{301}è", "é"]).0.concat(), "e\u{301}è");
        assert_eq!(feed(&[""], &["ab", "c"]), (strings(&["ab", "c", ""]), None));
    }

    /// The same by looking at every prefix of the whole text.
    fn naive(stops: &[String], text: &str) -> (String, Option<String>) {
        for (at, c) in text.char_indices() {
            let so_far = &text[..at + c.len_utf8()];
            let found = stops.iter().filter(|stop| !stop.is_empty() && so_far.ends_with(stop.as_str()));
            if let Some(stop) = found.max_by_key(|stop| stop.len()) {
                return (so_far[..so_far.len() - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn agrees_with_a_naive_search(
            stops in prop::collection::vec("[aé🦀]{0,4}", 0..4), pieces in prop::collection::vec("[abé🦀]{0,4}", 0..10)
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stop_texts: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (released, stopped) = feed(&stop_texts, &pieces);
            prop_assert_eq!((released.concat(), stopped), naive(&stops, &pieces.concat()));
        }
    }
}
