//! What `mlxbatch plan` says.
//!
//! Owns the wording and the names of the JSON fields. The numbers come from the command.

use serde_json::{Value, json};

use crate::batch::{count_text, number_text, size_text};
use crate::commands::{memory_needs::MemoryNeeds, shared_prefixes::NamedPrefix};
use crate::plan::MAX_WINDOW_REQUESTS;

/// People are shown what saves one token in so many; a common first word does not.
const MIN_SHOWN_SHARE: u64 = 1000;

/// A plan, added up over the file.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub input: String,
    pub model: String,
    pub dtype: &'static str,
    /// KV of one token, all layers.
    pub bytes_per_token: u64,
    pub batch_size: u32,
    /// Failed lines included.
    pub num_requests: u64,
    pub num_failed: u64,
    /// Turns of conversations that follow answers; nothing else here counts them.
    pub num_later_turns: u64,
    pub num_windows: u64,
    pub num_prompt_tokens: u64,
    pub num_unique_tokens: u64,
    /// Those of them that come again behind different beginnings.
    pub num_repeated_tokens: u64,
    /// Where such prompts part.
    pub parting: Option<NamedParting>,
    /// Those of them that the cache file has, if one is named.
    pub num_stored_tokens: Option<u64>,
    pub longest_prompt_tokens: u64,
    /// Held at once in a run, answers at full length included.
    pub max_live_tokens: u64,
    /// Beside KV.
    pub memory: MemoryNeeds,
    /// Memory that a run may take now, for people: it differs from moment to moment. `None` where that is not known.
    pub free_bytes: Option<u64>,
    /// Those that save most first.
    pub largest_shared: Vec<NamedPrefix>,
    /// In the order of their numbers, where they are asked for.
    pub shards: Vec<ShardPlan>,
}

/// Where a prompt parts from others, and the text from there on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedParting {
    pub position: u64,
    pub text: String,
}

/// What comes again is worth a word where it is one unique token in so many, and so many together.
const MIN_TOLD_REPEATS: (u64, u64) = (5, 256);

/// What one shard of the input comes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShardPlan {
    pub num_requests: u64,
    pub num_prompt_tokens: u64,
    pub num_unique_tokens: u64,
    pub num_stored_tokens: u64,
}

impl ShardPlan {
    fn num_computed(&self) -> u64 {
        self.num_unique_tokens.saturating_sub(self.num_stored_tokens)
    }
}

/// Shards that are told of with a line each.
const MAX_SHOWN_SHARDS: usize = 64;

/// A split that computes so much more is worth a word about it.
const MIN_TOLD_RATIO: f64 = 1.1;

impl Report {
    fn share_reusable(&self) -> f64 {
        let num_reusable = self.num_prompt_tokens.saturating_sub(self.num_unique_tokens);
        num_reusable as f64 / self.num_prompt_tokens.max(1) as f64
    }

    fn kv_bytes(&self, num_tokens: u64) -> u64 {
        num_tokens.saturating_mul(self.bytes_per_token)
    }

    /// Tokens that one run computes, where not all of its prompts are stored.
    fn num_computed(&self) -> u64 {
        self.num_unique_tokens.saturating_sub(self.num_stored_tokens.unwrap_or(0))
    }

    /// The same of all shards together.
    fn num_computed_by_shards(&self) -> u64 {
        self.shards.iter().map(ShardPlan::num_computed).sum()
    }

    /// How many times as many they are; nothing where one run computes none.
    fn shard_ratio(&self) -> Option<f64> {
        let num_computed = self.num_computed();
        (num_computed > 0).then(|| self.num_computed_by_shards() as f64 / num_computed as f64)
    }

    fn shards_text(&self) -> String {
        let count = self.shards.len();
        let ratio = self.shard_ratio();
        let against =
            ratio.map_or_else(String::new, |ratio| format!(", {ratio:.2} times as many as one run"));
        let num_computed = number_text(self.num_computed_by_shards());
        let mut text = format!("\n{count} shards compute {num_computed} prompt tokens{against}\n");
        text += "       shard   requests     tokens   computed\n";
        for (number, shard) in (1..).zip(&self.shards).take(MAX_SHOWN_SHARDS) {
            text += &format!(
                "  {:>10} {:>10} {:>10} {:>10}\n",
                format!("{number}/{count}"),
                number_text(shard.num_requests),
                number_text(shard.num_prompt_tokens),
                number_text(shard.num_computed())
            );
        }
        if count > MAX_SHOWN_SHARDS {
            text += &format!("  and {} more\n", number_text((count - MAX_SHOWN_SHARDS) as u64));
        }
        if ratio.is_some_and(|ratio| ratio >= MIN_TOLD_RATIO) && self.num_stored_tokens.is_none() {
            text += "  What they share is computed once where a run with --limit 1 --persist-cache FILE comes first and the\n  \
                     shards read it with --cache-mode ro.\n";
        }
        text
    }

    /// How the prompts could share more, if much of them comes again.
    fn advice_text(&self) -> Option<String> {
        let (one_in, at_least) = MIN_TOLD_REPEATS;
        let (num_unique, num_repeated) = (self.num_unique_tokens, self.num_repeated_tokens);
        let parting = self.parting.as_ref().filter(|_| num_repeated >= at_least.max(num_unique / one_in))?;
        let from = if parting.text.is_empty() { String::new() } else { format!(" ('{}')", parting.text) };
        Some(format!(
            "\n{} of the unique tokens come again behind different beginnings: such prompts part at token {}{from}.\n  \
             Put what varies last, and they are computed once: {} tokens instead of {}.\n",
            number_text(num_repeated),
            number_text(parting.position),
            number_text(num_unique.saturating_sub(num_repeated)),
            number_text(num_unique),
        ))
    }

    /// All that a run takes at its batch size, answers at full length included.
    fn run_bytes(&self) -> u64 {
        let kv_bytes = self.kv_bytes(self.max_live_tokens);
        self.memory.weight_bytes.saturating_add(self.memory.beside()).saturating_add(kv_bytes)
    }

    fn memory_text(&self) -> String {
        let fits = match self.free_bytes {
            None => String::new(),
            Some(free) if self.run_bytes() <= free => {
                format!("; fits in the {} that are free", size_text(free))
            }
            Some(free) => format!(
                "; more than the {} that are free: requests would wait for each other",
                size_text(free)
            ),
        };
        format!(
            "about {}: weights {}, KV up to {}, working memory {}{fits}",
            size_text(self.run_bytes()),
            size_text(self.memory.weight_bytes),
            size_text(self.kv_bytes(self.max_live_tokens)),
            size_text(self.memory.beside())
        )
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let failed = match self.num_failed {
            0 => String::new(),
            num_failed => format!(", {} of them cannot be run", number_text(num_failed)),
        };
        let mut text = format!("{}: {}{failed}\n", self.input, count_text(self.num_requests, "request"));
        if self.num_prompt_tokens == 0 {
            return text;
        }
        let mut line = |name: &str, value: String| text += &format!("  {name:<16}{value}\n");
        line(
            "prompt tokens",
            format!(
                "{}, the longest prompt has {}",
                number_text(self.num_prompt_tokens),
                number_text(self.longest_prompt_tokens)
            ),
        );
        line("unique tokens", number_text(self.num_unique_tokens));
        if self.num_later_turns > 0 {
            line(
                "later turns",
                format!(
                    "{}, which follow answers and are not counted here",
                    number_text(self.num_later_turns)
                ),
            );
        }
        if let Some(num_stored_tokens) = self.num_stored_tokens {
            line(
                "in cache file",
                format!(
                    "{} of them, {} are left to compute",
                    number_text(num_stored_tokens),
                    number_text(self.num_unique_tokens.saturating_sub(num_stored_tokens))
                ),
            );
        }
        line("reusable", format!("{:.1}%", 100.0 * self.share_reusable()));
        line(
            "KV, all prompts",
            format!(
                "{}; {} with shared prefixes held once ({}, {} bytes a token)",
                size_text(self.kv_bytes(self.num_prompt_tokens)),
                size_text(self.kv_bytes(self.num_unique_tokens)),
                self.dtype,
                number_text(self.bytes_per_token)
            ),
        );
        line(
            "KV, running",
            format!(
                "up to {} at --batch-size {} with answers at full length",
                size_text(self.kv_bytes(self.max_live_tokens)),
                self.batch_size
            ),
        );
        line("memory, a run", self.memory_text());
        if self.num_windows > 1 {
            line(
                "windows",
                format!(
                    "{} of at most {} requests; what is shared between windows is counted in each",
                    number_text(self.num_windows),
                    number_text(MAX_WINDOW_REQUESTS as u64)
                ),
            );
        }
        let min_saved_tokens = self.num_prompt_tokens.div_ceil(MIN_SHOWN_SHARE);
        let shown: Vec<&NamedPrefix> =
            self.largest_shared.iter().filter(|prefix| prefix.num_saved_tokens >= min_saved_tokens).collect();
        if !shown.is_empty() {
            text += "\nlargest shared prefixes\n      tokens   requests      saved  text\n";
        }
        for prefix in shown {
            // What follows a shorter shared prefix, which has its own line.
            let dots = if prefix.num_parent_tokens > 0 { "… " } else { "" };
            let begins = if prefix.text.is_empty() { "(no visible text)" } else { &prefix.text };
            text += &format!(
                "  {:>10} {:>10} {:>10}  {dots}{begins}\n",
                number_text(prefix.num_tokens),
                number_text(prefix.num_users),
                number_text(prefix.num_saved_tokens)
            );
        }
        text += &self.advice_text().unwrap_or_default();
        if !self.shards.is_empty() {
            text += &self.shards_text();
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let shared: Vec<Value> = self.largest_shared.iter().map(NamedPrefix::json).collect();
        let shards: Vec<Value> = self
            .shards
            .iter()
            .map(|shard| {
                json!({
                    "num_requests": shard.num_requests,
                    "num_prompt_tokens": shard.num_prompt_tokens,
                    "num_unique_tokens": shard.num_unique_tokens,
                    "num_computed_tokens": shard.num_computed(),
                })
            })
            .collect();
        let mut plan = json!({
            "input": self.input,
            "model": self.model,
            "num_requests": self.num_requests,
            "num_failed": self.num_failed,
            "num_later_turns": self.num_later_turns,
            "num_windows": self.num_windows,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_unique_tokens": self.num_unique_tokens,
            "num_repeated_tokens": self.num_repeated_tokens,
            "num_stored_tokens": self.num_stored_tokens,
            "share_reusable": self.share_reusable(),
            "longest_prompt_tokens": self.longest_prompt_tokens,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "kv_bytes_per_token": self.bytes_per_token,
            "kv_all_prompts_bytes": self.kv_bytes(self.num_prompt_tokens),
            "kv_shared_once_bytes": self.kv_bytes(self.num_unique_tokens),
            "kv_peak_bytes": self.kv_bytes(self.max_live_tokens),
            "weight_bytes": self.memory.weight_bytes,
            "working_bytes": self.memory.beside(),
            "run_bytes": self.run_bytes(),
            "largest_shared": shared,
        });
        if !shards.is_empty() {
            plan["shards"] = json!({
                "num_computed_tokens": self.num_computed_by_shards(),
                "times_one_run": self.shard_ratio(),
                "each": shards,
            });
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let prefix = |num_tokens, num_parent_tokens, text: &str| NamedPrefix {
            num_tokens,
            num_parent_tokens,
            num_users: 100,
            num_saved_tokens: 99 * (num_tokens - num_parent_tokens),
            text: text.to_owned(),
            parent: None,
        };
        Report {
            input: "in.jsonl".to_owned(),
            model: "m".to_owned(),
            dtype: "f32",
            bytes_per_token: 46_080,
            batch_size: 32,
            num_requests: 102,
            num_failed: 2,
            num_later_turns: 0,
            num_windows: 1,
            num_prompt_tokens: 120_000,
            num_stored_tokens: None,
            num_unique_tokens: 12_000,
            num_repeated_tokens: 2_000,
            parting: Some(NamedParting { position: 4, text: "Question 17".to_owned() }),
            longest_prompt_tokens: 1_300,
            max_live_tokens: 40_000,
            memory: MemoryNeeds { weight_bytes: 500 << 20, state_bytes: 0, working_bytes: 70 << 20 },
            free_bytes: Some(14 << 30),
            largest_shared: vec![
                prefix(1_000, 0, "system You are"),
                prefix(1_010, 1_000, ""),
                prefix(1_001, 1_000, "A"),
            ],
            shards: Vec::new(),
        }
    }

    #[test]
    fn a_plan_in_a_few_lines() {
        assert_eq!(
            report().text(),
            "\
in.jsonl: 102 requests, 2 of them cannot be run
  prompt tokens   120,000, the longest prompt has 1,300
  unique tokens   12,000
  reusable        90.0%
  KV, all prompts 5.1 GiB; 527 MiB with shared prefixes held once (f32, 46,080 bytes a token)
  KV, running     up to 1.7 GiB at --batch-size 32 with answers at full length
  memory, a run   about 2.3 GiB: weights 500 MiB, KV up to 1.7 GiB, working memory 70 MiB; fits in the 14.0 GiB that are free

largest shared prefixes
      tokens   requests      saved  text
       1,000        100     99,000  system You are
       1,010        100        990  … (no visible text)
"
        );
    }

    #[test]
    fn shards_are_told_with_what_they_lose() {
        let shard = |num_requests, num_unique_tokens| ShardPlan {
            num_requests,
            num_prompt_tokens: 60_000,
            num_unique_tokens,
            num_stored_tokens: 0,
        };
        let report = Report { shards: vec![shard(60, 8_000), shard(42, 7_000)], ..report() };
        let text = report.text();
        let expected = "
2 shards compute 15,000 prompt tokens, 1.25 times as many as one run
       shard   requests     tokens   computed
         1/2         60     60,000      8,000
         2/2         42     60,000      7,000
  What they share is computed once";
        assert!(text.contains(expected), "{text}");
        assert_eq!(report.json()["shards"]["times_one_run"], 1.25);
        // One run has nothing to compute: there is nothing to compare with.
        let warm = Report { num_stored_tokens: Some(12_000), ..report };
        assert!(warm.text().contains("2 shards compute 15,000 prompt tokens\n"), "{}", warm.text());
    }

    #[test]
    fn windows_are_told_of_and_nothing_is_divided_by_zero() {
        let report = Report { num_windows: 3, num_later_turns: 80, largest_shared: Vec::new(), ..report() };
        assert!(report.text().contains("\n  later turns     80, which follow answers"));
        assert!(report.text().contains("\n  windows         3 of at most 8,192 requests; "));
        let empty =
            Report { num_requests: 0, num_failed: 0, num_prompt_tokens: 0, num_unique_tokens: 0, ..report };
        assert_eq!(empty.text(), "in.jsonl: 0 requests\n");
        assert_eq!(empty.json()["share_reusable"], 0.0);
    }

    #[test]
    fn what_comes_again_is_told_where_it_is_much() {
        assert!(!report().text().contains("come again"));
        let report = Report { num_repeated_tokens: 9_000, ..report() };
        let expected = "
9,000 of the unique tokens come again behind different beginnings: such prompts part at token 4 ('Question 17').
  Put what varies last, and they are computed once: 3,000 tokens instead of 12,000.
";
        assert!(report.text().contains(expected), "{}", report.text());
        assert_eq!(report.json()["num_repeated_tokens"], 9_000);
    }

    #[test]
    fn a_run_that_does_not_fit_is_said_to() {
        let report = Report { free_bytes: Some(1 << 30), ..report() };
        assert!(report.text().contains("; more than the 1.0 GiB that are free: requests would wait"));
        assert!(!Report { free_bytes: None, ..report }.text().contains("free"));
    }

    #[test]
    fn sizes_beyond_all_memory_do_not_overflow() {
        let report = Report { num_prompt_tokens: u64::MAX, ..report() };
        assert_eq!(report.json()["kv_all_prompts_bytes"], u64::MAX);
        assert!(report.text().contains("GiB"));
    }
}
