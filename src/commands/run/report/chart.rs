//! Curves over the time of a run, as the page draws them.
//!
//! Owns the geometry: everything is in percent of the drawing. What the numbers are, and how they are written, is
//! the page's business.

use serde::Serialize;

/// A run is cut into so many pieces of the same length at most; each is a point of the curves.
const MAX_PIECES: usize = 60;

/// Numbers at times of a run, both ascending.
pub(super) struct Samples {
    /// Seconds.
    pub times: Vec<f64>,
    pub values: Vec<f64>,
}

/// How the numbers of a chart are written.
pub(super) type Written = fn(f64) -> String;

#[derive(Debug, Serialize)]
pub(super) struct Chart {
    title: String,
    ticks: Vec<Tick>,
    series: Vec<Series>,
    hovers: Vec<Hover>,
    /// The last time.
    end: String,
}

#[derive(Debug, Serialize)]
struct Tick {
    top: String,
    label: String,
}

#[derive(Debug, Serialize)]
struct Series {
    name: &'static str,
    path: String,
}

/// What is told of a piece when it is pointed at.
#[derive(Debug, Serialize)]
struct Hover {
    x: String,
    width: String,
    text: String,
}

/// Steps of an axis, from which tens and sizes are made.
pub(super) enum Scale {
    Decimal,
    Bytes,
}

impl Samples {
    /// The value at a time, on a straight line between the samples.
    fn at(&self, time: f64) -> f64 {
        let after = self.times.partition_point(|other| *other < time);
        match (after.checked_sub(1), self.values.get(after)) {
            (None, first) => first.copied().unwrap_or(0.0),
            (Some(before), None) => self.values[before],
            (Some(before), Some(next)) => {
                let (start, end) = (self.times[before], self.times[after]);
                let share = if end > start { (time - start) / (end - start) } else { 1.0 };
                self.values[before] + share * (next - self.values[before])
            }
        }
    }

    fn num_pieces(&self) -> usize {
        self.times.len().saturating_sub(1).clamp(1, MAX_PIECES)
    }

    fn end(&self) -> f64 {
        self.times.last().copied().unwrap_or(0.0)
    }

    /// The value at the end of each piece, and before the first.
    pub(super) fn levels(&self) -> Vec<f64> {
        let num_pieces = self.num_pieces();
        (0..=num_pieces).map(|piece| self.at(self.end() * piece as f64 / num_pieces as f64)).collect()
    }

    /// How much it rises in a second of each piece; the first stands before itself, too.
    pub(super) fn rates(&self) -> Vec<f64> {
        let levels = self.levels();
        let seconds = self.end() / (levels.len() - 1) as f64;
        let rises =
            levels.windows(2).map(|pair| if seconds > 0.0 { (pair[1] - pair[0]) / seconds } else { 0.0 });
        let mut rates: Vec<f64> = rises.collect();
        rates.insert(0, rates[0]);
        rates
    }
}

impl Chart {
    /// Draws curves of the same number of points over `seconds`.
    pub(super) fn new(
        title: impl Into<String>,
        curves: Vec<(&'static str, Vec<f64>)>,
        seconds: f64,
        (scale, written, time): (Scale, Written, Written),
    ) -> Self {
        let highest = curves.iter().flat_map(|(_, points)| points).copied().fold(0.0, f64::max);
        let top = scale.above(highest);
        let ticks =
            [0.0, 0.5, 1.0].map(|share| Tick { top: percent(1.0 - share), label: written(top * share) });
        let num_points = curves.iter().map(|(_, points)| points.len()).min().unwrap_or(0);
        let place = |point: usize| point as f64 / (num_points.max(2) - 1) as f64;
        let path = |points: &[f64]| {
            let corners = points.iter().take(num_points).enumerate().map(|(point, value)| {
                let command = if point == 0 { 'M' } else { 'L' };
                format!("{command}{} {}", percent(place(point)), percent(1.0 - value / top))
            });
            corners.collect::<String>()
        };
        let hovers = (1..num_points).map(|point| {
            let told: Vec<String> = match curves.as_slice() {
                [(_, points)] => vec![written(points[point])],
                _ => {
                    curves.iter().map(|(name, points)| format!("{name} {}", written(points[point]))).collect()
                }
            };
            Hover {
                x: percent(place(point - 1)),
                width: percent(place(1)),
                text: format!("{}: {}", time(seconds * place(point)), told.join(", ")),
            }
        });
        Self {
            title: title.into(),
            ticks: ticks.into(),
            hovers: hovers.collect(),
            end: time(seconds),
            series: curves.iter().map(|(name, points)| Series { name, path: path(points) }).collect(),
        }
    }
}

impl Scale {
    /// A round number that is not below this one, above 0.
    fn above(&self, number: f64) -> f64 {
        if !(number.is_finite() && number > 0.0) {
            return 1.0;
        }
        let unit = match self {
            Self::Decimal => 1.0,
            Self::Bytes => 1024f64.powf(number.log2().div_euclid(10.0).max(0.0)),
        };
        let number = number / unit;
        let ten = 10f64.powf(number.log10().floor());
        let rounds = [1.0, 2.0, 4.0, 5.0, 10.0].map(|step| step * ten);
        unit * rounds.into_iter().find(|round| *round >= number * (1.0 - 1e-9)).unwrap_or(10.0 * ten)
    }
}

fn percent(share: f64) -> String {
    let text = format!("{:.2}", 100.0 * share.clamp(0.0, 1.0));
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_counters_whenever_they_were_noted() {
        let samples = Samples { times: vec![0.0, 1.0, 3.0, 4.0], values: vec![0.0, 10.0, 30.0, 70.0] };
        let are_near = |told: Vec<f64>, exact: [f64; 4]| {
            assert!(
                told.len() == 4 && told.iter().zip(exact).all(|(told, exact)| (told - exact).abs() < 1e-9),
                "{told:?}"
            );
        };
        are_near(samples.levels(), [0.0, 40.0 / 3.0, 80.0 / 3.0, 70.0]);
        are_near(samples.rates(), [10.0, 10.0, 10.0, 32.5]);
        let one = Samples { times: vec![0.0], values: vec![5.0] };
        assert_eq!((one.levels(), one.rates()), (vec![5.0, 5.0], vec![0.0, 0.0]));
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        for (number, top) in
            [(0.0, 1.0), (0.03, 0.04), (1.0, 1.0), (7.0, 10.0), (130.0, 200.0), (3001.0, 4000.0)]
        {
            assert!((Scale::Decimal.above(number) - top).abs() < 1e-9 * top, "{number}");
        }
        let mib = f64::from(1 << 20);
        assert_eq!(Scale::Bytes.above(130.0 * mib), 200.0 * mib);
        assert_eq!(Scale::Bytes.above(1030.0 * mib), 2048.0 * mib);
    }

    #[test]
    fn a_curve_reaches_from_edge_to_edge_and_stays_within() {
        let written: Written = |number| format!("{number:.0}");
        let curves = vec![("a", vec![0.0, 50.0, 100.0]), ("b", vec![100.0, 0.0, 0.0])];
        let chart = Chart::new("t", curves, 8.0, (Scale::Decimal, written, written));
        assert_eq!(chart.series[0].path, "M0 100L50 50L100 0");
        assert_eq!(chart.hovers[1].text, "8: a 100, b 0");
        assert_eq!((chart.end.as_str(), chart.ticks[1].label.as_str()), ("8", "50"));
    }
}
