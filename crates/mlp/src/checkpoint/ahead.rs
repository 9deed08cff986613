//! Reading mapped tensors ahead of their use.
//!
//! ## Method
//! Two threads read what is queued, in the order in which it was asked for, and end with the queue. Each
//! takes an expert's tensors and reads them from end to end, as systems are quickest: they foresee what
//! is read next. They are two because they have to get processors from those who pack: one alone lets
//! the disk rest. Whoever needs an expert waits until it was read, as threads that touch it meanwhile
//! would have it read in small parts, and out of order.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::file::{Pages, Part};

/// Bytes that a disk reads in about the time that a thread takes to start.
const LEAST: usize = 1 << 18;
/// Most threads that read.
const THREADS: usize = 2;
/// How many of the last that were queued are not queued again.
const RECENT: usize = 4;
/// Most bytes between two tensors that are read with them.
const GAP: usize = 1 << 20;

/// The queue of what is read ahead.
#[derive(Clone, Debug, Default)]
pub struct ReadAhead(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    /// Something was read.
    read: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Vec<Part>>,
    /// How many were queued so far.
    queued: u64,
    /// The numbers of those that are being read.
    reading: Vec<u64>,
    /// The numbers of the last, and where they begin.
    recent: VecDeque<(u64, (usize, usize))>,
    /// Threads that read.
    threads: usize,
}

impl State {
    /// The number of the next that will be read.
    fn next(&self) -> u64 {
        self.queued - self.waiting.len() as u64
    }

    /// Whether that of this number was read.
    fn has_read(&self, number: u64) -> bool {
        number < self.next() && !self.reading.contains(&number)
    }
}

impl ReadAhead {
    /// Queues pages, unless they were just before, or are so few that it would not pay. Gives the
    /// number to wait for.
    pub fn start(&self, pages: &Pages) -> Option<u64> {
        let parts = pages.parts();
        let bytes: usize = parts.iter().map(|(_, bytes)| bytes.len()).sum();
        let (map, first) = parts.first().filter(|_| bytes >= LEAST)?;
        let place = (map.as_ptr().addr(), first.start);
        let mut state = self.0.lock();
        if let Some(&(number, _)) = state.recent.iter().find(|recent| recent.1 == place) {
            return Some(number);
        }
        let number = state.queued;
        state.waiting.push_back(parts.to_vec());
        state.queued += 1;
        state.recent.push_back((number, place));
        if state.recent.len() > RECENT {
            state.recent.pop_front();
        }
        while state.threads < THREADS.min(state.waiting.len()) {
            let queue = Arc::clone(&self.0);
            let name = "swiglu-read-ahead".to_owned();
            let thread = thread::Builder::new()
                .name(name)
                .spawn(move || queue.read());
            if thread.is_err() {
                break;
            }
            state.threads += 1;
        }
        if state.threads == 0 {
            // Pages are read when they are touched.
            state.waiting.clear();
        }
        Some(number)
    }

    /// Waits until that of this number was read.
    pub fn wait(&self, number: u64) {
        let unread = |state: &mut State| !state.has_read(number);
        drop(self.0.read.wait_while(self.0.lock(), unread));
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until nothing is queued.
    fn read(&self) {
        loop {
            let mut state = self.lock();
            let number = state.next();
            let Some(pages) = state.waiting.pop_front() else {
                state.threads -= 1;
                return;
            };
            state.reading.push(number);
            drop(state);
            // Whatever happened, nobody must wait for ever.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                for (map, bytes) in runs(pages) {
                    map.read_ahead(bytes);
                }
            }));
            self.lock().reading.retain(|&reading| reading != number);
            self.read.notify_all();
        }
    }
}

/// The same bytes and what lies between them, from the first to the last of each file.
fn runs(mut parts: Vec<Part>) -> Vec<Part> {
    parts.sort_by_key(|(map, bytes)| (map.as_ptr().addr(), bytes.start));
    let mut runs: Vec<Part> = Vec::new();
    for (map, bytes) in parts {
        match runs.last_mut() {
            Some((last, run)) if Arc::ptr_eq(last, &map) && bytes.start <= run.end + GAP => {
                run.end = run.end.max(bytes.end);
            }
            _ => runs.push((map, bytes)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use swiglu_mmap::MappedFile;

    use super::*;

    /// A mapped file of so many bytes.
    fn file(bytes: usize) -> Arc<MappedFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, vec![1; bytes]).unwrap();
        Arc::new(MappedFile::open(&path).unwrap())
    }

    fn parts(map: &Arc<MappedFile>, ranges: &[Range<usize>]) -> Vec<Part> {
        let parts = ranges.iter().map(|range| (Arc::clone(map), range.clone()));
        parts.collect()
    }

    #[test]
    fn each_is_waited_for_by_itself() {
        let mut state = State::default();
        assert!(!state.has_read(0));
        // Three queued, of which one is being read.
        state.waiting = [Vec::new(), Vec::new()].into();
        (state.queued, state.reading) = (3, vec![0]);
        assert!(!state.has_read(0) && !state.has_read(1));
        // The second overtakes the first.
        state.waiting.pop_front();
        assert!(!state.has_read(0) && state.has_read(1) && !state.has_read(2));
        state.reading = vec![1];
        assert!(state.has_read(0) && !state.has_read(1));
    }

    #[test]
    fn tensors_side_by_side_are_one_run() {
        let maps = [file(9), file(9)];
        let far = GAP + 30;
        let given = [far + 1..far + 9, 20..30, 0..10, 5..8];
        let mut all = parts(&maps[0], &given);
        all.extend(parts(&maps[1], &given[2..]));
        let of = |map: &Arc<MappedFile>| -> Vec<Range<usize>> {
            let runs = runs(all.clone()).into_iter();
            let runs = runs.filter(|run| Arc::ptr_eq(&run.0, map));
            runs.map(|run| run.1).collect()
        };
        assert_eq!(of(&maps[0]), [0..30, far + 1..far + 9]);
        assert_eq!(of(&maps[1]), [Range { start: 0, end: 10 }]);
    }

    #[test]
    fn all_that_is_queued_is_read_and_threads_end() {
        let (map, ahead) = (file(LEAST + 9), ReadAhead::default());
        let of = |bytes: Range<usize>| Pages::new(parts(&map, &[bytes]).into_iter());
        let pages = |first: usize| of(first..first + LEAST);
        assert_eq!(ahead.start(&of(0..LEAST - 1)), None);
        for number in 0..9 {
            assert_eq!(ahead.start(&pages(number)), Some(number as u64));
            let before = number.saturating_sub(RECENT - 1);
            assert_eq!(ahead.start(&pages(before)), Some(before as u64));
        }
        assert_eq!(ahead.start(&pages(0)), Some(9));
        (0..10).for_each(|number| ahead.wait(number));
        let state = ahead.0.lock();
        assert!(state.waiting.is_empty() && state.reading.is_empty());
    }
}
