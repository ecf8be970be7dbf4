//! Checks of flag values.
//!
//! Owns ranges and the messages that say what a flag wants. The flags themselves are in `cli`.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::batch::{PENALTY_RANGE, REPETITION_PENALTY_RANGE, is_url};

/// Far beyond what any machine decodes together; catches a slipped zero before memory does.
pub const MAX_BATCH_SIZE: u32 = 4096;

const MAX_PREFILL_CHUNK: u32 = 1 << 20;

pub(super) fn model(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("name a folder, a .gguf file or a hub repository such as owner/name".into());
    }
    Ok(text.into())
}

pub(super) fn at_least_one(text: &str) -> Result<u32, String> {
    whole_number_in(text, 1, u32::MAX)
}

pub(super) fn whole_number(text: &str) -> Result<u32, String> {
    whole_number_in(text, 0, u32::MAX)
}

pub(super) fn batch_size(text: &str) -> Result<u32, String> {
    whole_number_in(text, 1, MAX_BATCH_SIZE)
}

pub(super) fn prefill_chunk(text: &str) -> Result<u32, String> {
    whole_number_in(text, 1, MAX_PREFILL_CHUNK)
}

/// A number of bytes, with a decimal (kB, MB, GB) or binary (KiB, MiB, GiB) unit.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 11] = [
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("k", 1 << 10),
        ("m", 1 << 20),
        ("g", 1 << 30),
    ];
    let wrong = || "give a size in bytes or with a unit, such as 512MB or 4GiB; 0 for none".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, bytes)| lower.strip_suffix(unit).map(|number| (number, *bytes)))
        .unwrap_or((lower.strip_suffix('b').unwrap_or(&lower), 1));
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let num_bytes = number * unit as f64;
    if !(0.0..9e18).contains(&num_bytes) {
        return Err(wrong());
    }
    Ok(num_bytes as u64)
}

/// A size of at least one byte.
pub(super) fn positive_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("give more than 0, such as 512MB or 4GiB".into()),
        num_bytes => Ok(num_bytes),
    }
}

/// The same, but not none.
pub(super) fn some_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("give a size above 0, such as 512MB or 4GiB".to_owned()),
        num_bytes => Ok(num_bytes),
    }
}

/// Where something is sent.
pub(super) fn url(text: &str) -> Result<String, String> {
    match is_url(text) {
        true => Ok(text.to_owned()),
        false => Err("give a URL that begins with https:// or http://".to_owned()),
    }
}

/// A length of time in seconds or with a unit.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    // Milliseconds first: they end in s as well.
    const UNITS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let wrong = || "give seconds or a time with a unit, such as 30s, 10m, 12h or 30d".to_owned();
    let text = text.trim();
    let (number, millis) = UNITS
        .iter()
        .find_map(|(unit, millis)| text.strip_suffix(unit).map(|number| (number, *millis)))
        .unwrap_or((text, 1000));
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// The same, but not none.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("give a time above 0, such as 30s".to_owned()),
        time => Ok(time),
    }
}

/// `A:B`, either of which may be left out.
pub(super) fn range(text: &str) -> Result<(u64, Option<u64>), String> {
    let wrong = || "give lines as A:B, counted from 0, such as 100:200, 100: or :200".to_owned();
    let (start, end) = text.trim().split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
    let start = if start.trim().is_empty() { 0 } else { number(start)? };
    let end = if end.trim().is_empty() { None } else { Some(number(end)?) };
    if end.is_some_and(|end| end < start) {
        return Err(wrong());
    }
    Ok((start, end))
}

/// A share, from 0 to 1 or in percent.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    match number.trim().parse::<f64>() {
        Ok(number) if (0.0..=unit).contains(&number) => Ok(number / unit),
        _ => Err("give a share from 0 to 1, or in percent, such as 60%".to_owned()),
    }
}

/// How many lines may fail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    Lines(u64),
    /// Of all lines, 0 to 100.
    Percent(f64),
}

impl Tolerance {
    /// Whether so many failed lines of so many are too many.
    pub fn is_exceeded(self, num_failed: u64, num_lines: u64) -> bool {
        match self {
            Self::Lines(most) => num_failed > most,
            Self::Percent(most) => num_failed as f64 * 100.0 > most * num_lines as f64,
        }
    }
}

/// A number of lines, or a share of them.
pub(super) fn tolerance(text: &str) -> Result<Tolerance, String> {
    let wrong = || "give a number of lines such as 10, or a share of them such as 2%".to_owned();
    match text.trim().strip_suffix('%') {
        Some(percent) => match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Tolerance::Percent(percent)),
            _ => Err(wrong()),
        },
        None => text.trim().parse().map(Tolerance::Lines).map_err(|_| wrong()),
    }
}

/// Negative seeds are taken by their bits, as in a request.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    let text = text.trim();
    text.parse::<u64>()
        .or_else(|_| text.parse::<i64>().map(|seed| seed as u64))
        .map_err(|_| "give a whole number below 2^64".into())
}

pub(super) fn temperature(text: &str) -> Result<f32, String> {
    number_in(text, 2.0, "0 always takes the likeliest token, 1 samples as the model predicts")
}

/// Above 0, since no token at all would be left; requests may say 0 and mean greedy.
pub(super) fn top_p(text: &str) -> Result<f32, String> {
    match number_in(text, 1.0, "1 keeps all tokens")? {
        0.0 => Err("must be above 0; for the likeliest token alone give --temperature 0".into()),
        top_p => Ok(top_p),
    }
}

pub(super) fn min_p(text: &str) -> Result<f32, String> {
    number_in(text, 1.0, "0 keeps all tokens")
}

pub(super) fn repetition_penalty(text: &str) -> Result<f32, String> {
    number_within(text, &REPETITION_PENALTY_RANGE, "1 is none")
}

pub(super) fn penalty(text: &str) -> Result<f32, String> {
    number_within(text, &PENALTY_RANGE, "0 is none")
}

pub(super) fn stop(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("give a text; the empty one would end every answer at once".into());
    }
    Ok(text.into())
}

fn whole_number_in(text: &str, min: u32, max: u32) -> Result<u32, String> {
    let wanted = match max {
        u32::MAX => format!("give a whole number, {min} or more"),
        _ => format!("give a whole number from {min} to {max}"),
    };
    match text.trim().parse::<u32>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(wanted),
    }
}

fn number_in(text: &str, max: f32, advice: &str) -> Result<f32, String> {
    number_within(text, &(0.0..=f64::from(max)), advice)
}

fn number_within(text: &str, range: &RangeInclusive<f64>, advice: &str) -> Result<f32, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if range.contains(&number) => Ok(number as f32),
        _ => Err(format!("give a number from {} to {}; {advice}", range.start(), range.end())),
    }
}
