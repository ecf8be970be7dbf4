//! Numbers as people read them.
//!
//! Owns the rendering of counts, rates, durations and sizes. No output of its own.

use std::time::Duration;

/// Renders a count with its noun: `1 request`, `1,234 requests`.
pub fn counted(num: u64, singular: &str) -> String {
    match num {
        1 => format!("1 {singular}"),
        _ => format!("{} {singular}s", grouped(num)),
    }
}

/// `1,234,567`
pub fn grouped(num: u64) -> String {
    let digits = num.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12.3`, or `1,234` where the fraction says nothing; `–` where something was divided by no time.
pub fn rate(per_second: f64) -> String {
    if !per_second.is_finite() {
        "–".into()
    } else if per_second < 100.0 {
        format!("{per_second:.1}")
    } else {
        grouped(per_second.round() as u64)
    }
}

/// `0.4s`, `12s`, `3m 05s`, `2h 03m`, `4d 01h`.
pub fn duration(time: Duration) -> String {
    let num_seconds = time.as_secs_f64().round() as u64;
    let (num_minutes, num_hours) = (num_seconds / 60, num_seconds / 3600);
    if time < Duration::from_secs(10) {
        format!("{:.1}s", time.as_secs_f64())
    } else if num_minutes == 0 {
        format!("{num_seconds}s")
    } else if num_hours == 0 {
        format!("{num_minutes}m {:02}s", num_seconds % 60)
    } else if num_hours < 24 {
        format!("{num_hours}h {:02}m", num_minutes % 60)
    } else {
        format!("{}d {:02}h", num_hours / 24, num_hours % 24)
    }
}

/// `12 KiB`, `512 MiB`, `1.4 GiB`.
pub fn size(num_bytes: u64) -> String {
    const KIB: f64 = (1 << 10) as f64;
    let num_kib = num_bytes as f64 / KIB;
    match num_bytes {
        0 => "0 MiB".into(),
        1..0x10_0000 => format!("{:.0} KiB", num_kib.ceil()),
        0x10_0000..0x4000_0000 => format!("{:.0} MiB", num_kib / KIB),
        _ => format!("{:.1} GiB", num_kib / KIB / KIB),
    }
}

/// A size to ask for where so many bytes are needed, and never less: whole MiB of three digits, rounded up.
pub fn enough(num_bytes: u64) -> String {
    let num_mib = num_bytes.div_ceil(1 << 20);
    let mut step = 1;
    while num_mib / step >= 1000 {
        step *= 10;
    }
    format!("{} MiB", num_mib.next_multiple_of(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_plural_and_commas() {
        assert_eq!(counted(0, "request"), "0 requests");
        assert_eq!(counted(1, "request"), "1 request");
        assert_eq!(counted(1_234_567, "request"), "1,234,567 requests");
        assert_eq!(grouped(100), "100");
    }

    #[test]
    fn durations_change_units() {
        let texts =
            [0.04, 9.96, 59.4, 59.6, 185.0, 7_380.0, 349_200.0].map(Duration::from_secs_f64).map(duration);
        assert_eq!(texts, ["0.0s", "10.0s", "59s", "1m 00s", "3m 05s", "2h 03m", "4d 01h"]);
    }

    #[test]
    fn a_rate_over_no_time_is_no_number() {
        assert_eq!(rate(f64::INFINITY), "–");
        assert_eq!(rate(f64::NAN), "–");
        assert_eq!(rate(2.5), "2.5");
        assert_eq!(rate(12_345.6), "12,346");
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size(0), "0 MiB");
        assert_eq!(size(1), "1 KiB");
        assert_eq!(size(1000 << 10), "1000 KiB");
        assert_eq!(size(300 << 20), "300 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
    }

    #[test]
    fn what_is_enough_is_never_less() {
        let texts = [0, 1, 600 << 20, (600 << 20) + 1, 1639 << 20, 1640 << 20, 123_401 << 20].map(enough);
        let expected = ["0 MiB", "1 MiB", "600 MiB", "601 MiB", "1640 MiB", "1640 MiB", "124000 MiB"];
        assert_eq!(texts, expected);
        assert_eq!(enough(u64::MAX), "17600000000000 MiB");
    }
}
