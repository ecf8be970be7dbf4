//! Many pieces of one stream of bytes, made into something on several threads.
//!
//! Owns who reads when. Bytes can only be read in order, by one thread at a time; to make an array of
//! them is a copy and the first touch of its memory, which takes twice as long.

use std::{
    io::Read,
    sync::{Mutex, PoisonError},
};

use crate::threads::on_threads;

/// Beyond this, reading is what everybody waits for.
const MAX_THREADS: usize = 4;

struct Source<'a> {
    bytes: &'a mut (dyn Read + Send),
    /// Index of the piece that is read next.
    next: usize,
}

/// Reads pieces of these sizes and makes something of each, in order. Returns `None` where the bytes
/// end early or cannot be read.
pub(super) fn read_shared<T: Send, E: Send>(
    bytes: &mut (dyn Read + Send),
    sizes: &[usize],
    make: impl Fn(usize, &[u8]) -> Result<T, E> + Sync,
) -> Result<Option<Vec<T>>, E> {
    let source = Mutex::new(Source { bytes, next: 0 });
    let work = || -> Result<Vec<(usize, T)>, E> {
        let mut piece = Vec::new();
        let mut made = Vec::new();
        loop {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            let index = source.next;
            let Some(&size) = sizes.get(index) else { return Ok(made) };
            piece.resize(size, 0);
            if source.bytes.read_exact(&mut piece).is_err() {
                source.next = sizes.len();
                return Ok(made);
            }
            source.next += 1;
            drop(source);
            made.push((index, make(index, &piece)?));
        }
    };
    let mut made = Vec::with_capacity(sizes.len());
    for of_thread in on_threads(MAX_THREADS.min(sizes.len()), work) {
        made.extend(of_thread?);
    }
    made.sort_unstable_by_key(|(index, _)| *index);
    Ok((made.len() == sizes.len()).then(|| made.into_iter().map(|(_, made)| made).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_in_order_unless_some_are_missing_or_one_cannot_be_made() {
        let bytes: Vec<u8> = (0..100).collect();
        let sizes = [10, 0, 30, 1, 1, 50, 2];
        for (num_bytes, failing) in [(100, None), (94, None), (93, None), (0, None), (100, Some(3))] {
            for _ in 0..50 {
                let made = read_shared(&mut &bytes[..num_bytes], &sizes, |index, piece| {
                    if Some(index) == failing { Err("no") } else { Ok(piece.to_vec()) }
                });
                match (failing, num_bytes) {
                    (Some(_), _) => assert_eq!(made, Err("no")),
                    (None, 94..) => {
                        let made = made.expect("all can be made").expect("all are there");
                        assert!(made.iter().map(Vec::len).eq(sizes));
                        assert_eq!(made.concat(), bytes[..94]);
                    }
                    _ => assert_eq!(made, Ok(None)),
                }
            }
        }
    }
}
