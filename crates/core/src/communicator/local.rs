//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, HostCommunicator, Result};

/// A rank that is a thread of this process: for tests and examples, and for hosts with several
/// memories. Sums are taken in the order of the ranks, so they are the same bits on every run.
///
/// ```
/// use std::time::Duration;
/// use swiglu_core::{HostCommunicator, LocalCommunicator};
/// # fn main() -> swiglu_core::Result<()> {
/// let ranks = LocalCommunicator::group(3, Duration::from_secs(10))?;
/// let sums = std::thread::scope(|scope| {
///     let threads: Vec<_> = (ranks.into_iter().map(|rank| {
///         scope.spawn(move || {
///             let mut values = [rank.rank() as f32, 1.0];
///             rank.all_reduce_f32(&mut values).map(|()| values)
///         })
///     }))
///     .collect();
///     threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
/// });
/// for sum in sums {
///     assert_eq!(sum?, [3.0, 3.0]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LocalCommunicator {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    world: usize,
    timeout: Duration,
    round: Mutex<Round>,
    changed: Condvar,
}

/// One sum. Ranks arrive, the last of them adds up, and each leaves with the sum; then the next
/// round begins.
#[derive(Debug)]
struct Round {
    /// What each rank brought.
    parts: Vec<Option<Vec<f32>>>,
    sum: Option<Arc<Vec<f32>>>,
    left: usize,
    /// Which ranks have been dropped: they will not come again.
    gone: Vec<bool>,
    /// Why the group can do nothing any more.
    failed: Option<String>,
}

impl Round {
    /// The first of a group's rounds, or the one after that in which these went.
    fn new(gone: Vec<bool>) -> Self {
        Self {
            parts: vec![None; gone.len()],
            sum: None,
            left: 0,
            gone,
            failed: None,
        }
    }

    /// The rank that all wait for in vain, if there is one.
    fn deserter(&self) -> Option<usize> {
        let owes = |&rank: &usize| self.gone[rank] && self.parts[rank].is_none();
        let first = (0..self.gone.len()).find(owes);
        first.filter(|_| self.sum.is_none())
    }
}

impl LocalCommunicator {
    /// The ends of a group of `world` ranks, rank 0 first. A call waits at most `timeout` for the
    /// other ranks.
    ///
    /// # Errors
    /// A world of 0 ranks.
    pub fn group(world: usize, timeout: Duration) -> Result<Vec<Self>> {
        if world == 0 {
            return Err(Error::argument("world", "at least one rank", world));
        }
        let group = Arc::new(Group {
            world,
            timeout,
            round: Mutex::new(Round::new(vec![false; world])),
            changed: Condvar::new(),
        });
        let rank = |rank| Self {
            rank,
            group: Arc::clone(&group),
        };
        Ok((0..world).map(rank).collect())
    }
}

impl HostCommunicator for LocalCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.group.world
    }

    fn all_reduce_f32(&self, values: &mut [f32]) -> Result<()> {
        let group = &*self.group;
        let deadline = Instant::now() + group.timeout;
        // The round before may not be over: its last ranks have yet to leave.
        let mut round = group.until(group.lock(), deadline, |round| round.sum.is_none())?;
        round.parts[self.rank] = Some(values.to_vec());
        if round.parts.iter().all(Option::is_some) {
            match add(&round.parts) {
                Ok(sum) => round.sum = Some(Arc::new(sum)),
                Err(reason) => round.failed = Some(reason),
            }
            group.changed.notify_all();
        }
        let mut round = group.until(round, deadline, |round| round.sum.is_some())?;
        if let Some(sum) = &round.sum {
            values.copy_from_slice(sum);
        }
        round.left += 1;
        if round.left == group.world {
            *round = Round::new(std::mem::take(&mut round.gone));
            group.changed.notify_all();
        }
        Ok(())
    }
}

/// The sum in the order of the ranks.
fn add(parts: &[Option<Vec<f32>>]) -> std::result::Result<Vec<f32>, String> {
    let mut parts = parts.iter().flatten();
    let mut sum = parts.next().cloned().unwrap_or_default();
    for part in parts {
        if part.len() != sum.len() {
            let (first, other) = (sum.len(), part.len());
            return Err(format!("ranks brought {first} and {other} elements"));
        }
        for (sum, x) in sum.iter_mut().zip(part) {
            *sum += x;
        }
    }
    Ok(sum)
}

impl Group {
    /// No panic of a thread leaves a round half changed.
    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the round to come so far; a rank that does not come ends the whole group.
    fn until<'a>(
        &self,
        mut round: MutexGuard<'a, Round>,
        deadline: Instant,
        reached: impl Fn(&Round) -> bool,
    ) -> Result<MutexGuard<'a, Round>> {
        loop {
            if let Some(reason) = &round.failed {
                return Err(failure(reason.clone()));
            }
            if reached(&round) {
                return Ok(round);
            }
            if let Some(rank) = round.deserter() {
                round.failed = Some(format!("rank {rank} has gone"));
                self.changed.notify_all();
                continue;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let missing = round.parts.iter().filter(|part| part.is_none()).count();
                let reason = format!("{missing} ranks did not come within {:?}", self.timeout);
                round.failed = Some(reason.clone());
                self.changed.notify_all();
                return Err(failure(reason));
            };
            let waited = self.changed.wait_timeout(round, left);
            round = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn failure(reason: String) -> Error {
    Error::Backend {
        platform: "ranks",
        source: reason.into(),
    }
}

/// Whoever waits for a rank that goes is told.
impl Drop for LocalCommunicator {
    fn drop(&mut self) {
        self.group.lock().gone[self.rank] = true;
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Reference;
    use crate::{Communicator, RowLayout, Tensor, TensorMut, bf16};

    /// What each rank's thread returns.
    fn on<T: Send>(
        ranks: Vec<LocalCommunicator>,
        work: impl Fn(LocalCommunicator) -> T + Sync,
    ) -> Vec<T> {
        std::thread::scope(|scope| {
            let start = |rank| scope.spawn(|| work(rank));
            let threads: Vec<_> = ranks.into_iter().map(start).collect();
            let results = threads.into_iter().map(|thread| thread.join());
            results.map(std::result::Result::unwrap).collect()
        })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn many_sums_in_a_row_are_those_of_all_ranks() {
        let ranks = LocalCommunicator::group(4, LONG).unwrap();
        let sums = on(ranks, |rank| {
            let mut sums = Vec::new();
            for n in 0..200 {
                let mut values = [HostCommunicator::rank(&rank) as f32, n as f32];
                rank.all_reduce_f32(&mut values).unwrap();
                sums.push(values);
            }
            sums
        });
        for sums in sums {
            for (n, sum) in sums.into_iter().enumerate() {
                assert_eq!(sum, [6.0, 4.0 * n as f32]);
            }
        }
    }

    #[test]
    fn sums_are_taken_in_the_order_of_the_ranks() {
        let parts = [1e8_f32, 1.0, -1e8];
        let ranks = LocalCommunicator::group(3, LONG).unwrap();
        let sums = on(ranks, |rank| {
            let mut values = [parts[HostCommunicator::rank(&rank)]];
            rank.all_reduce_f32(&mut values).unwrap();
            values[0]
        });
        assert_eq!(sums, [(1e8 + 1.0) - 1e8; 3]);
    }

    #[test]
    fn a_rank_that_goes_ends_the_group_without_the_time_out() {
        let ranks = LocalCommunicator::group(3, LONG).unwrap();
        let errors = on(ranks, |rank| {
            rank.all_reduce_f32(&mut [1.0]).unwrap();
            if HostCommunicator::rank(&rank) == 1 {
                return None;
            }
            Some(rank.all_reduce_f32(&mut [1.0]).unwrap_err().to_string())
        });
        assert_eq!(errors[0].as_deref(), Some("ranks: rank 1 has gone"));
        assert_eq!(errors[2], errors[0]);
    }

    #[test]
    fn a_rank_that_does_not_come_is_an_error_after_the_time_out() {
        let ranks = LocalCommunicator::group(2, Duration::from_millis(20)).unwrap();
        let error = ranks[0].all_reduce_f32(&mut [1.0]).unwrap_err().to_string();
        assert_eq!(error, "ranks: 1 ranks did not come within 20ms");
        assert!(ranks[1].all_reduce_f32(&mut [1.0]).is_err());
    }

    #[test]
    fn ranks_with_different_lengths_all_fail() {
        let ranks = LocalCommunicator::group(2, LONG).unwrap();
        let errors = on(ranks, |rank| {
            let mut values = vec![0.0; 1 + HostCommunicator::rank(&rank)];
            rank.all_reduce_f32(&mut values).unwrap_err().to_string()
        });
        assert_eq!(errors, ["ranks: ranks brought 1 and 2 elements"; 2]);
        assert!(LocalCommunicator::group(0, LONG).is_err());
    }

    /// Only rows are read and written, and bf16 is rounded once.
    #[test]
    fn matrices_are_summed_row_by_row_and_rounded_once() {
        let ranks = LocalCommunicator::group(3, LONG).unwrap();
        let results = on(ranks, |rank| {
            let layout = RowLayout::contiguous(2, 2).with_stride(3).with_offset(1);
            // 256 + 1 + 1 in bf16, rounded after each sum, would be 256.
            let own = bf16::from_f32([256.0, 1.0, 1.0][HostCommunicator::rank(&rank)]);
            let mut matrix = [own; 7];
            rank.all_reduce(&Reference, TensorMut::from_slice(&mut matrix, layout))
                .unwrap();
            let mut partial = [own.to_f32(); 7];
            let mut y = [bf16::ZERO; 4];
            rank.all_reduce_into(
                &Reference,
                TensorMut::from_slice(&mut partial, layout),
                TensorMut::from_slice(&mut y, RowLayout::contiguous(2, 2)),
            )
            .unwrap();
            let mut plain = [own.to_f32(); 4];
            let rows = RowLayout::contiguous(2, 2);
            rank.all_reduce(&Reference, TensorMut::from_slice(&mut plain, rows))
                .unwrap();
            (own, matrix, y, plain)
        });
        let sum = bf16::from_f32(258.0);
        for (own, matrix, y, plain) in results {
            assert_eq!(matrix, [own, sum, sum, own, sum, sum, own]);
            assert_eq!((y, plain), ([sum; 4], [258.0; 4]));
        }
    }

    #[test]
    fn what_cannot_be_summed_is_refused() {
        let mut ranks = LocalCommunicator::group(1, LONG).unwrap();
        let rank = ranks.remove(0);
        let layout = RowLayout::contiguous(1, 2);
        let mut halves = [crate::f16::ONE; 2];
        let error = rank.all_reduce(&Reference, TensorMut::from_slice(&mut halves, layout));
        assert_eq!(
            error.unwrap_err().to_string(),
            "matrix: expected f32 or bf16, got f16"
        );
        let (mut partial, mut y) = ([1.0_f32; 2], [0.0_f32; 3]);
        let error = rank.all_reduce_into(
            &Reference,
            TensorMut::from_slice(&mut partial, layout),
            TensorMut::from_slice(&mut y, RowLayout::contiguous(1, 3)),
        );
        assert!(error.unwrap_err().to_string().starts_with("y: expected"));
        let outside = RowLayout::contiguous(2, 2);
        let short = Tensor::<Reference>::from_slice(&partial, outside);
        assert!(short.check("partial").is_err());
    }
}
