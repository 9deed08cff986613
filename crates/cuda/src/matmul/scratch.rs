//! Memory that matmuls write on the way: each stream has its own, since two run at once.
//!
//! ## Method
//! 1. Every backend over one set of kernels has a [`StreamScratch`]: cublasLt's workspace, and room to
//!    decode an FP8 weight into.
//! 2. The largest weight loaded so far decides how large that room is, on every stream: whoever loads
//!    a larger one enlarges all of them, so that a weight runs the same way on each.
//! 3. A room that became too small is kept: graphs that were captured with it may be replayed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Room of one stream, and what it had before.
#[derive(Debug)]
pub(super) struct Room<B>(Mutex<Vec<B>>);

impl<B> Room<B> {
    /// Held while a matmul that uses the room is enqueued, so that another thread's on the same
    /// stream does not come between.
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rooms of all streams.
#[derive(Debug)]
pub(super) struct Rooms<B>(Mutex<All<B>>);

#[derive(Debug)]
struct All<B> {
    /// Bytes that each has.
    bytes: usize,
    of: Vec<Weak<Room<B>>>,
}

impl<B> Default for Rooms<B> {
    fn default() -> Self {
        Self(Mutex::new(All {
            bytes: 0,
            of: Vec::new(),
        }))
    }
}

impl<B> Rooms<B> {
    fn lock(&self) -> MutexGuard<'_, All<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, as large as the others.
    pub(super) fn add<E>(&self, make: impl Fn(usize) -> Result<B, E>) -> Result<Arc<Room<B>>, E> {
        let mut all = self.lock();
        let first = match all.bytes {
            0 => Vec::new(),
            bytes => vec![make(bytes)?],
        };
        let room = Arc::new(Room(Mutex::new(first)));
        all.of.retain(|room| room.strong_count() > 0);
        all.of.push(Arc::downgrade(&room));
        Ok(room)
    }

    /// Sees to it that each has so many bytes at least.
    pub(super) fn enlarge<E>(
        &self,
        bytes: usize,
        make: impl Fn(usize) -> Result<B, E>,
    ) -> Result<(), E> {
        let mut all = self.lock();
        if bytes <= all.bytes {
            return Ok(());
        }
        // All are made before any takes its place: if one cannot be had, nothing has changed.
        let rooms: Vec<_> = all.of.iter().filter_map(Weak::upgrade).collect();
        let made: Vec<B> = rooms
            .iter()
            .map(|_| make(bytes))
            .collect::<Result<_, E>>()?;
        for (room, new) in rooms.iter().zip(made) {
            room.lock().push(new);
        }
        all.bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Sizes stand for memory.
    fn make(bytes: usize) -> Result<usize, ()> {
        Ok(bytes)
    }

    #[test]
    fn every_stream_has_a_room_of_its_own_as_large_as_the_largest_weight_asks() {
        let rooms = Rooms::default();
        let first = rooms.add(make).unwrap();
        assert!(first.lock().is_empty());
        rooms.enlarge(100, make).unwrap();
        let second = rooms.add(make).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        rooms.enlarge(50, make).unwrap();
        assert_eq!(
            (first.lock().last(), second.lock().last()),
            (Some(&100), Some(&100))
        );
        // What either loads, both have room for; what graphs were captured with stays.
        rooms.enlarge(200, make).unwrap();
        assert_eq!(
            (&*first.lock(), &*second.lock()),
            (&vec![100, 200], &vec![100, 200])
        );
    }

    #[test]
    fn no_memory_is_made_for_streams_that_are_gone() {
        let rooms = Rooms::default();
        let kept = rooms.add(make).unwrap();
        drop(rooms.add(make).unwrap());
        let made = Cell::new(0);
        let counting = |bytes| {
            made.set(made.get() + 1);
            make(bytes)
        };
        rooms.enlarge(10, counting).unwrap();
        assert_eq!((made.get(), &*kept.lock()), (1, &vec![10]));
    }

    #[test]
    fn where_one_room_cannot_be_had_all_stay_as_they_are() {
        let rooms = Rooms::default();
        let both = [rooms.add(make).unwrap(), rooms.add(make).unwrap()];
        let left = Cell::new(1);
        let one = |bytes| {
            left.set(left.get() - 1);
            if left.get() < 0 { Err(()) } else { Ok(bytes) }
        };
        rooms.enlarge(10, one).unwrap_err();
        assert!(both.iter().all(|room| room.lock().is_empty()));
        rooms.enlarge(10, make).unwrap();
        assert!(both.iter().all(|room| *room.lock() == [10]));
    }
}
