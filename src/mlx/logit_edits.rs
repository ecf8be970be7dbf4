//! Changes to logits on the device: biases, bans, penalties.
//!
//! Owns doing that for all rows together, by as many operations for many rows as for one, on the few logits
//! that change. What changes is said by the engine, but for the part of the step's input token, which may be
//! on the device alone.

use mlx_rs::{
    Array, Dtype, ops,
    ops::indexing::{put_along_axis, scatter_add_single, take_along_axis},
};

use super::{arrays::concatenated, error::Result, sys};
use crate::engine::{LogitEdits, Penalties, TokenId};

/// `(R, vocabulary)` logits, float32, after the edits of some rows; `inputs` are the tokens before all rows,
/// `(R,)`, uint32.
pub(super) fn apply(logits: &Array, rows: &[(u32, &LogitEdits)], inputs: &Array) -> Result<Array> {
    if rows.is_empty() {
        return Ok(logits.clone());
    }
    let num_columns = logits.dim(-1) as u32;
    let flat = logits.reshape(&[-1])?;
    let flat = add(flat, &Additions::new(rows, num_columns), inputs)?;
    let flat = match PenalizedLogits::new(rows, num_columns) {
        Some(penalized) => penalized.apply(&flat, inputs)?,
        None => flat,
    };
    Ok(flat.reshape(logits.shape())?)
}

/// What is added where, as places in all rows' logits.
#[derive(Default)]
struct Additions {
    places: Vec<u32>,
    addends: Vec<f32>,
    conditions: Vec<Condition>,
}

/// A place whose token is not to be chosen if its row's input is the trigger.
struct Condition {
    place: u32,
    row: u32,
    trigger: TokenId,
}

impl Additions {
    fn new(rows: &[(u32, &LogitEdits)], num_columns: u32) -> Self {
        let mut additions = Self::default();
        for &(row, edits) in rows {
            // A token outside the vocabulary is not chosen anyway.
            let place = |token: TokenId| (token < num_columns).then(|| row * num_columns + token);
            let banned = edits.banned.iter().map(|token| (*token, f32::NEG_INFINITY));
            for (token, addend) in edits.added.iter().copied().chain(banned) {
                if let Some(place) = place(token) {
                    additions.places.push(place);
                    additions.addends.push(addend);
                }
            }
            for &(trigger, banned) in &edits.banned_after {
                additions.conditions.extend(place(banned).map(|place| Condition { place, row, trigger }));
            }
        }
        additions
    }
}

fn add(flat: Array, additions: &Additions, inputs: &Array) -> Result<Array> {
    let mut flat = flat;
    if !additions.places.is_empty() {
        let addends = Array::from_slice(&additions.addends, &[additions.addends.len() as i32, 1]);
        flat = scatter_add_single(&flat, vector(&additions.places), addends, 0)?;
    }
    let conditions = &additions.conditions;
    if !conditions.is_empty() {
        let of_each = |of: fn(&Condition) -> u32| vector(&conditions.iter().map(of).collect::<Vec<_>>());
        let is_met = inputs
            .take_axis(of_each(|condition| condition.row), 0)?
            .eq(of_each(|condition| condition.trigger))?;
        let addends =
            ops::select(is_met, Array::from_f32(f32::NEG_INFINITY), Array::from_f32(0.0))?.expand_dims(1)?;
        flat = scatter_add_single(&flat, of_each(|condition| condition.place), addends, 0)?;
    }
    Ok(flat)
}

/// The logits that penalties change: those of all tokens that are known to be there, then the one of each
/// row's input token, as if it was there for the first time.
#[derive(Default)]
struct PenalizedLogits {
    /// Rows with penalties, and where each begins in all rows' logits.
    rows: Vec<u32>,
    first_places: Vec<u32>,
    known_places: Vec<u32>,
    all: Vec<Penalized>,
}

#[derive(Clone, Copy)]
struct Penalized {
    /// Which of the rows with penalties.
    row: u32,
    /// No token at all for an input token, which is not compared with itself.
    token: TokenId,
    /// What the logit is divided by, or multiplied with: whatever the input is, and where it is the token.
    factor: f32,
    factor_of_input: f32,
    /// Times in the answer, and how many more where it is the input.
    num_new: f32,
    num_new_of_input: f32,
    frequency: f32,
    presence: f32,
}

impl PenalizedLogits {
    fn new(rows: &[(u32, &LogitEdits)], num_columns: u32) -> Option<Self> {
        let mut logits = Self::default();
        let mut of_inputs = Vec::new();
        let penalized = rows.iter().filter_map(|(row, edits)| Some((*row, edits.penalties.as_ref()?)));
        for (index, (row, penalties)) in (0..).zip(penalized) {
            let Penalties { repetition, presence, frequency, seen, input_is_new } = penalties;
            let num_new_of_input = f32::from(u8::from(*input_is_new));
            let input = Penalized {
                row: index,
                token: TokenId::MAX,
                factor: *repetition,
                factor_of_input: *repetition,
                num_new: num_new_of_input,
                num_new_of_input,
                frequency: *frequency,
                presence: *presence,
            };
            of_inputs.push(input);
            logits.rows.push(row);
            logits.first_places.push(row * num_columns);
            // One that is too far back and not of the answer counts only if it is the input, as if it was new.
            let counting = seen.iter().filter(|seen| seen.num_recent > 0 || seen.num_new > 0);
            for seen in counting.filter(|seen| seen.token < num_columns) {
                logits.known_places.push(row * num_columns + seen.token);
                logits.all.push(Penalized {
                    token: seen.token,
                    factor: if seen.num_recent > 0 { *repetition } else { 1.0 },
                    num_new: seen.num_new as f32,
                    ..input
                });
            }
        }
        logits.all.extend(of_inputs);
        (!logits.rows.is_empty()).then_some(logits)
    }

    fn of_each(&self, of: fn(&Penalized) -> f32) -> Array {
        let numbers: Vec<f32> = self.all.iter().map(of).collect();
        Array::from_slice(&numbers, &[numbers.len() as i32])
    }

    fn apply(&self, flat: &Array, inputs: &Array) -> Result<Array> {
        let inputs = inputs.take_axis(vector(&self.rows), 0)?;
        let tokens: Vec<u32> = self.all.iter().map(|penalized| penalized.token).collect();
        let rows: Vec<u32> = self.all.iter().map(|penalized| penalized.row).collect();
        let is_input = inputs.take_axis(vector(&rows), 0)?.eq(vector(&tokens))?;
        let factors =
            ops::select(&is_input, self.of_each(|p| p.factor_of_input), self.of_each(|p| p.factor))?;
        let more = is_input.as_dtype(Dtype::Float32)?.multiply(self.of_each(|p| p.num_new_of_input))?;
        let num_new = self.of_each(|p| p.num_new).add(more)?;

        let input_places = inputs.add(vector(&self.first_places))?;
        let num_known = self.known_places.len();
        let places = if num_known == 0 {
            input_places.clone()
        } else {
            concatenated(vec![vector(&self.known_places), input_places.clone()], 0)?
        };
        let before = take_along_axis(flat, &places, 0)?;
        let repeated = ops::select(
            before.gt(Array::from_f32(0.0))?,
            before.divide(&factors)?,
            before.multiply(&factors)?,
        )?;
        let frequent = num_new.multiply(self.of_each(|p| p.frequency))?;
        let present = ops::minimum(&num_new, Array::from_f32(1.0))?.multiply(self.of_each(|p| p.presence))?;
        let after = repeated.subtract(frequent)?.subtract(present)?;

        // An input token that is known too is counted rightly there: that is written last.
        let num_all = self.all.len();
        let of_inputs = sys::slice_axis(&after, 0, num_known, num_all)?;
        let flat = put_along_axis(flat, &input_places, of_inputs, 0)?;
        if num_known == 0 {
            return Ok(flat);
        }
        Ok(put_along_axis(&flat, vector(&self.known_places), sys::slice_axis(&after, 0, 0, num_known)?, 0)?)
    }
}

fn vector(numbers: &[u32]) -> Array {
    Array::from_slice(numbers, &[numbers.len() as i32])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::Seen;

    const NUM_COLUMNS: usize = 11;

    /// What each row comes to by a formula over its tokens; the last of them is the input.
    fn expected(logits: &[f32], edits: &LogitEdits, input: u32) -> Vec<f32> {
        let edited = |token: u32| {
            let mut logit = logits[token as usize];
            logit +=
                edits.added.iter().filter(|(other, _)| *other == token).map(|(_, bias)| bias).sum::<f32>();
            if edits.banned.contains(&token) || edits.banned_after.contains(&(input, token)) {
                logit = f32::NEG_INFINITY;
            }
            let Some(penalties) = &edits.penalties else { return logit };
            let seen = penalties.seen.iter().find(|seen| seen.token == token);
            let is_recent = seen.is_some_and(|seen| seen.num_recent > 0) || token == input;
            let is_new_input = token == input && penalties.input_is_new;
            let num_new = seen.map_or(0, |seen| seen.num_new) + u32::from(is_new_input);
            if is_recent {
                logit = if logit > 0.0 { logit / penalties.repetition } else { logit * penalties.repetition };
            }
            logit -= penalties.frequency * num_new as f32;
            logit - if num_new > 0 { penalties.presence } else { 0.0 }
        };
        (0..NUM_COLUMNS as u32).map(edited).collect()
    }

    fn edits() -> Vec<Option<LogitEdits>> {
        let none = || LogitEdits {
            added: Arc::default(),
            banned: Arc::default(),
            banned_after: Vec::new(),
            penalties: None,
        };
        let seen = |token, num_recent, num_new| Seen { token, num_recent, num_new };
        let penalties = |seen: Vec<Seen>, input_is_new| {
            Some(Penalties {
                repetition: 1.3,
                presence: 0.4,
                frequency: 0.7,
                seen: Arc::new(seen),
                input_is_new,
            })
        };
        vec![
            None,
            Some(LogitEdits {
                added: [(3, 2.5), (9, f32::NEG_INFINITY), (4000, 1.0)].into(),
                banned: [1, 3, 99].into(),
                ..none()
            }),
            // The input is 4 there and 5 here.
            Some(LogitEdits { banned_after: vec![(4, 7), (5, 7), (5, 8), (6, 10), (5, 77)], ..none() }),
            Some(LogitEdits { penalties: penalties(vec![], false), ..none() }),
            Some(LogitEdits {
                added: [(2, -1.0), (6, 3.0)].into(),
                penalties: penalties(vec![seen(6, 1, 2), seen(2, 0, 1), seen(0, 3, 0), seen(5, 0, 0)], true),
                banned_after: vec![(6, 0)],
                ..none()
            }),
            Some(LogitEdits { penalties: penalties(vec![seen(1, 1, 0), seen(4, 2, 2)], true), ..none() }),
            None,
        ]
    }

    #[test]
    fn rows_are_edited_as_the_formula_says_alone_and_among_others() {
        let inputs = [0u32, 4, 5, 2, 6, 3, 1];
        let numbers: Vec<f32> = (0..7 * NUM_COLUMNS).map(|at| (at as f32 * 1.7).sin() * 3.0).collect();
        let logits = Array::from_slice(&numbers, &[7, NUM_COLUMNS as i32]);
        let edits = edits();
        let with_edits = |rows: std::ops::Range<usize>| -> Vec<f32> {
            let some = rows.clone().filter_map(|row| Some(((row - rows.start) as u32, edits[row].as_ref()?)));
            let part = sys::slice_axis(&logits, 0, rows.start, rows.end).unwrap();
            let edited = apply(&part, &some.collect::<Vec<_>>(), &vector(&inputs[rows.clone()])).unwrap();
            let edited = edited.contiguous().unwrap();
            edited.eval().unwrap();
            edited.to_vec_exact::<f32>().unwrap()
        };
        let all = with_edits(0..7);
        for row in 0..7 {
            let places = row * NUM_COLUMNS..(row + 1) * NUM_COLUMNS;
            let expected = match &edits[row] {
                Some(edits) => expected(&numbers[places.clone()], edits, inputs[row]),
                None => numbers[places.clone()].to_vec(),
            };
            for (found, expected) in all[places.clone()].iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-5 || found == expected,
                    "row {row}: {found} {expected}"
                );
            }
            assert_eq!(all[places], with_edits(row..row + 1), "row {row} alone");
        }
        // The rows that were edited are not the ones that were given.
        logits.eval().unwrap();
        assert_eq!(logits.to_vec_exact::<f32>().unwrap(), numbers);
    }
}
