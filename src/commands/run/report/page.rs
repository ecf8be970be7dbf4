//! `--report-html FILE`: a page that a person looks at, whole in itself: no network, no script.
//!
//! Owns what is shown and in which words; `page.html` has the looks, `chart` the curves. Prompts, ids and names are
//! strangers' text: the template escapes all that it is given, and nothing here makes markup.

use std::time::Duration;

use anyhow::Context;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Report,
    chart::{Chart, Samples, Scale},
    outcome,
};
use crate::{
    batch::{duration_text, number_text, rate_text, size_text},
    cache::Tier,
    commands::{run::timeline::Moment, shared_prefixes::NamedPrefix},
    terminal::shown,
};

const TEMPLATE: &str = include_str!("page.html");

#[derive(Debug, Serialize)]
struct Page {
    title: String,
    outcome: String,
    is_good: bool,
    subtitle: String,
    tiles: Vec<Named>,
    charts: Vec<Chart>,
    sources: Vec<Source>,
    tiers: Vec<TierRow>,
    cache_notes: Vec<String>,
    prefixes: Vec<Branch>,
    times: Vec<TimeRow>,
    slowest: Vec<SlowRow>,
    failures: Vec<FailureRow>,
    facts: Vec<Facts>,
}

#[derive(Debug, Serialize)]
struct Named {
    name: String,
    value: String,
}

/// A part of all prompt tokens.
#[derive(Debug, Serialize)]
struct Source {
    name: String,
    class: &'static str,
    count: String,
    share: f64,
    percent: String,
}

#[derive(Debug, Serialize)]
struct TierRow {
    name: &'static str,
    reused: String,
    entries: String,
    held: String,
    evicted: String,
}

/// A shared prefix with those that begin with it.
#[derive(Debug, Serialize)]
struct Branch {
    text: String,
    users: String,
    tokens: String,
    saved: String,
    /// Of what the best of all saves, in percent.
    share: String,
    children: Vec<Branch>,
}

#[derive(Debug, Serialize)]
struct TimeRow {
    name: &'static str,
    p50: String,
    p90: String,
    p99: String,
    max: String,
}

#[derive(Debug, Serialize)]
struct SlowRow {
    line: String,
    id: String,
    is_ok: bool,
    total: String,
    first_token: String,
    queue: String,
    prompt: String,
    cached: String,
    generated: String,
}

#[derive(Debug, Serialize)]
struct FailureRow {
    code: String,
    num: String,
    examples: Vec<String>,
    /// How many others there are.
    more: Option<String>,
}

#[derive(Debug, Serialize)]
struct Facts {
    title: &'static str,
    facts: Vec<Named>,
}

/// Renders the page of a report.
pub(super) fn render(report: &Report) -> anyhow::Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // By its name's ending everything that is put in is escaped.
    environment.add_template("page.html", TEMPLATE).context("the page's template does not parse")?;
    let template = environment.get_template("page.html").context("it was added just now")?;
    let page = serde_json::to_value(Page::of(report)).context("the page cannot be put together")?;
    template.render(template_value(&page)).context("the page cannot be rendered")
}

/// What the template is given: texts, whether something is so, and lists of such.
fn template_value(page: &Value) -> minijinja::Value {
    match page {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(is_so) => minijinja::Value::from(*is_so),
        Value::String(text) => minijinja::Value::from(text.as_str()),
        Value::Number(number) => minijinja::Value::from(number.to_string()),
        Value::Array(items) => items.iter().map(template_value).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.as_str(), template_value(value)));
            minijinja::Value::from_pairs(fields)
        }
    }
}

impl Page {
    fn of(report: &Report) -> Self {
        let Report { about, stats, .. } = report;
        let text = |map: &Map<String, Value>, name: &str| map.get(name).map(told).unwrap_or_default();
        let subtitle = [
            text(&about.environment, "began"),
            text(&about.model, "name"),
            format!("{} on {}", text(&about.model, "dtype"), text(&about.environment, "device")),
        ];
        Self {
            title: safe(&format!("{} → {}", about.input, about.output)),
            outcome: outcome(report),
            is_good: report.ending == "complete" && stats.num_failed == 0,
            subtitle: subtitle.join(" · "),
            tiles: tiles(report),
            charts: charts(&report.moments),
            sources: sources(report),
            tiers: tiers(report),
            cache_notes: cache_notes(report),
            prefixes: branches(&report.shared, None),
            times: times(report),
            slowest: slowest(report),
            failures: failures(report),
            facts: [
                ("Environment", &about.environment),
                ("Model", &about.model),
                ("Settings", &about.parameters),
            ]
            .map(|(title, facts)| Facts { title, facts: named(facts) })
            .into(),
        }
    }
}

fn tiles(report: &Report) -> Vec<Named> {
    let Report { stats, engine, .. } = report;
    let speed =
        |speed: Option<f64>| speed.map_or("–".to_owned(), |speed| format!("{} /s", rate_text(speed)));
    let tile = |name: &str, value: String| Named { name: name.to_owned(), value };
    vec![
        tile("requests", number_text(stats.num_done())),
        tile("failed", number_text(stats.num_failed)),
        tile("whole time", duration_text(stats.wall)),
        tile("prompt tokens computed", speed(engine.prefill_tokens_per_second())),
        tile("tokens generated", speed(engine.decode_tokens_per_second())),
        tile("of prompts from the cache", percent(stats.num_cached_tokens, stats.num_prompt_tokens)),
        tile("memory at its peak", stats.peak_memory_bytes.map_or("–".to_owned(), size_text)),
    ]
}

fn charts(moments: &[Moment]) -> Vec<Chart> {
    let Some(last) = moments.last().filter(|_| moments.len() > 1) else { return Vec::new() };
    let seconds = last.at.as_secs_f64();
    let counter = |value: fn(&Moment) -> u64| Samples {
        times: times_of(moments),
        values: moments.iter().map(|moment| value(moment) as f64).collect(),
    };
    let count = |number: f64| if number < 10.0 { short(number) } else { number_text(number.round() as u64) };
    let bytes = |number: f64| size_text(number as u64);
    let time = |seconds: f64| seconds_text(seconds);
    let held = [
        ("process", of_moments(moments, |moment| moment.memory_bytes)),
        ("tensors", of_moments(moments, |moment| moment.array_bytes)),
        ("prompt cache", of_moments(moments, |moment| moment.cache_bytes)),
    ];
    let memory: Vec<(&'static str, Vec<f64>)> =
        held.into_iter().filter_map(|(name, samples)| Some((name, samples?.levels()))).collect();
    let counted = |title: &str, name, points| {
        Chart::new(title, vec![(name, points)], seconds, (Scale::Decimal, count, time))
    };
    let mut charts = vec![
        counted(
            "Tokens generated per second",
            "generated",
            counter(|moment| moment.num_generated_tokens).rates(),
        ),
        counted(
            "Prompt tokens computed per second",
            "computed",
            counter(|moment| moment.num_computed_tokens).rates(),
        ),
        counted("Requests done", "done", counter(|moment| moment.num_done).levels()),
    ];
    if !memory.is_empty() {
        charts.push(Chart::new("Memory", memory, seconds, (Scale::Bytes, bytes, time)));
    }
    charts
}

fn times_of(moments: &[Moment]) -> Vec<f64> {
    moments.iter().map(|moment| moment.at.as_secs_f64()).collect()
}

/// What is known at all moments; nothing where it is not.
fn of_moments(moments: &[Moment], value: fn(&Moment) -> Option<u64>) -> Option<Samples> {
    let values: Option<Vec<f64>> =
        moments.iter().map(|moment| value(moment).map(|bytes| bytes as f64)).collect();
    Some(Samples { times: times_of(moments), values: values? })
}

fn sources(report: &Report) -> Vec<Source> {
    let stats = &report.stats;
    let num_all = stats.num_prompt_tokens;
    let cached = |tier: Tier| stats.cache.map_or(0, |usage| usage.tiers[tier].num_cached_tokens as u64);
    [
        ("computed", "k3", stats.num_prefilled_tokens()),
        ("reused: system", "k0", cached(Tier::System)),
        ("reused: user", "k1", cached(Tier::User)),
        ("reused: assistant", "k2", cached(Tier::Assistant)),
    ]
    .into_iter()
    .filter(|(_, _, count)| *count > 0)
    .map(|(name, class, count)| Source {
        name: name.to_owned(),
        class,
        count: number_text(count),
        share: count as f64 / num_all.max(1) as f64,
        percent: percent(count, num_all),
    })
    .collect()
}

fn tiers(report: &Report) -> Vec<TierRow> {
    let tiers =
        report.stats.cache.iter().flat_map(|usage| usage.tiers.iter().map(|(tier, usage)| (tier, *usage)));
    let rows = tiers.map(|(tier, usage)| TierRow {
        name: tier.name(),
        reused: number_text(usage.num_cached_tokens as u64),
        entries: number_text(usage.num_entries as u64),
        held: size_text(usage.num_bytes),
        evicted: number_text(usage.num_evictions as u64),
    });
    let mut rows: Vec<TierRow> = rows.collect();
    // As prompts begin with it.
    rows.reverse();
    rows
}

fn cache_notes(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if report.num_unique_tokens > 0 {
        notes.push(format!(
            "Of {} prompt tokens {} are distinct: as many have to be computed at least, where nothing was stored before.",
            number_text(report.stats.num_prompt_tokens),
            number_text(report.num_unique_tokens as u64)
        ));
    }
    let count = |name: &str| report.cache_file.get(name).and_then(Value::as_u64);
    if let Some((restored, saved)) = count("num_restored_tokens").zip(count("num_saved_tokens")) {
        notes.push(format!(
            "Cache file: {} tokens brought in, {} saved.",
            number_text(restored),
            number_text(saved)
        ));
    }
    notes
}

/// Those below one of them, or below none.
fn branches(shared: &[NamedPrefix], parent: Option<usize>) -> Vec<Branch> {
    let most = shared.iter().map(|prefix| prefix.num_saved_tokens).max().unwrap_or(0).max(1);
    let below = shared.iter().enumerate().filter(|(_, prefix)| prefix.parent == parent);
    below
        .map(|(place, prefix)| {
            let dots = if prefix.num_parent_tokens > 0 { "… " } else { "" };
            let begins = if prefix.text.is_empty() { "(no visible text)" } else { &prefix.text };
            Branch {
                text: safe(&format!("{dots}{begins}")),
                users: number_text(prefix.num_users),
                tokens: format!("{} tokens", number_text(prefix.num_tokens)),
                saved: number_text(prefix.num_saved_tokens),
                share: format!("{:.1}", 100.0 * prefix.num_saved_tokens as f64 / most as f64),
                children: branches(shared, Some(place)),
            }
        })
        .collect()
}

fn times(report: &Report) -> Vec<TimeRow> {
    let names = ["in the queue", "until the first token", "until the end"];
    let rows = report.times.iter().zip(names).filter(|(times, _)| times.num > 0);
    rows.map(|(times, name)| TimeRow {
        name,
        p50: seconds_text(times.p50),
        p90: seconds_text(times.p90),
        p99: seconds_text(times.p99),
        max: seconds_text(times.max),
    })
    .collect()
}

fn slowest(report: &Report) -> Vec<SlowRow> {
    let time = |time: Duration| seconds_text(time.as_secs_f64());
    let rows = report.slowest.iter().map(|slow| SlowRow {
        line: number_text(slow.line),
        id: safe(&slow.id),
        is_ok: slow.is_ok,
        total: time(slow.total),
        first_token: slow.first_token.map_or("–".to_owned(), time),
        queue: time(slow.queue),
        prompt: number_text(slow.tokens.num_prompt_tokens),
        cached: number_text(slow.tokens.num_cached_tokens),
        generated: number_text(slow.tokens.num_completion_tokens),
    });
    rows.collect()
}

fn failures(report: &Report) -> Vec<FailureRow> {
    let rows = report.stats.failures.each().map(|(code, num, examples)| FailureRow {
        code: safe(code),
        num: number_text(num),
        examples: examples.iter().map(|example| safe(example)).collect(),
        more: num.checked_sub(examples.len() as u64).filter(|more| *more > 0).map(number_text),
    });
    rows.collect()
}

fn named(facts: &Map<String, Value>) -> Vec<Named> {
    let told = facts.iter().filter(|(_, value)| !value.is_null()).flat_map(|(name, value)| match value {
        Value::Object(inner) => named(inner),
        value => vec![Named { name: safe(name), value: told(value) }],
    });
    told.collect()
}

/// A fact as it is read: text without its quotes.
fn told(value: &Value) -> String {
    match value {
        Value::String(text) => safe(text),
        value => safe(&value.to_string()),
    }
}

/// Text with what would turn or hide it shown; markup is the template's to escape.
fn safe(text: &str) -> String {
    shown(text).into_owned()
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".to_owned() } else { format!("{:.1}%", 100.0 * part as f64 / whole as f64) }
}

/// Seconds, with what a short time has of them.
fn seconds_text(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1000.0),
        _ => duration_text(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
    }
}

/// A small number without a fraction that says nothing.
fn short(number: f64) -> String {
    format!("{number:.1}").trim_end_matches(".0").to_owned()
}
