//! Threads that help a caller who is in no pool.
//!
//! ## Method
//! 1. The caller runs tasks itself from the first moment on. Handing a call over to a pool and being
//!    woken at its end would take longer than a small call's work does.
//! 2. Tasks are dealt out beforehand, a run of neighbours to each thread, which so finds what they have
//!    in common in its caches. Who is done with his own takes from the others', also of those who never
//!    came: nobody is waited for but who is in a task.
//! 3. A call opens a *gate*: a word with the call's number, how many threads it wants, and how many are
//!    inside. Whoever comes after it was closed stays outside, so that what a call borrows is borrowed
//!    no longer than it runs.
//! 4. A thread that is done looks at the gate for a while before it sleeps, as calls come one after
//!    another. Of those who sleep each wakes two more, since waking one takes microseconds.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks at the gate before it sleeps: longer than from one half of an MLP to the
/// other.
const AWAKE: Duration = Duration::from_micros(30);
/// Looks at the gate for each look at the clock.
const LOOKS: usize = 16;

/// What tasks are called with.
type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

thread_local! {
    /// Which of a team's threads this is, while it runs a call's tasks.
    static MEMBER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which of the threads that run a call this one is, if a team's do.
pub(super) fn member() -> Option<usize> {
    MEMBER.get()
}

/// Threads that stay, and the one call at a time that they help.
pub(super) struct Team {
    /// Whether a call has the team.
    busy: AtomicBool,
    gate: AtomicU64,
    /// Written while the gate is closed and nobody inside, read by those inside.
    call: UnsafeCell<Option<Call>>,
    /// For the caller and each helper the next of the tasks that were dealt to it.
    next: Box<[Next]>,
    helpers: Box<[Helper]>,
    /// What a helper's task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the call is the one field that threads do not share as it is: the gate says who may touch it.
unsafe impl Sync for Team {}

#[derive(Clone, Copy)]
struct Call {
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
    /// The caller and those that it wants.
    threads: usize,
}

/// On cache lines of its own: processors fetch two at a time.
#[repr(align(128))]
#[derive(Default)]
struct Next(AtomicUsize);

#[derive(Default)]
struct Helper {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

/// The gate's word: the number of the call, how many helpers it wants, whether it is open, and how many
/// are inside.
#[derive(Clone, Copy)]
struct Gate(u64);

impl Gate {
    const OPEN: u64 = 1 << 15;
    /// Most helpers of a team: what the word has room for.
    const MOST: usize = (1 << 15) - 1;

    const fn opened(number: u32, wanted: usize) -> Self {
        Self((number as u64) << 32 | (wanted as u64) << 16 | Self::OPEN)
    }
    const fn number(self) -> u32 {
        (self.0 >> 32) as u32
    }
    const fn wants(self, helper: usize) -> bool {
        self.0 & Self::OPEN != 0 && helper < (self.0 >> 16 & 0xffff) as usize
    }
    const fn inside(self) -> u64 {
        self.0 & (Self::OPEN - 1)
    }
}

impl Team {
    /// The team of this process: as many threads as rayon's global pool has, the caller among them.
    /// None where a thread could not be started. To be called from outside of pools, whose sizes differ.
    pub(super) fn of_process() -> Option<&'static Self> {
        static TEAM: OnceLock<Option<&'static Team>> = OnceLock::new();
        *TEAM.get_or_init(|| Self::start(rayon::current_num_threads() - 1))
    }

    /// A team of so many helpers, whose threads stay until the process ends.
    fn start(helpers: usize) -> Option<&'static Self> {
        let helpers = helpers.min(Gate::MOST);
        let team: &'static Self = Box::leak(Box::new(Self {
            busy: AtomicBool::new(false),
            gate: AtomicU64::new(0),
            call: UnsafeCell::new(None),
            next: (0..=helpers).map(|_| Next::default()).collect(),
            helpers: (0..helpers).map(|_| Helper::default()).collect(),
            panic: Mutex::new(None),
        }));
        for helper in 0..helpers {
            let thread = thread::Builder::new().name(format!("swiglu-cpu-{helper}"));
            thread.spawn(move || team.help(helper)).ok()?;
        }
        Some(team)
    }

    /// Calls `task` with each number below `count`, on this thread and on those that come to help.
    /// False, and nothing is done, where another call has the team.
    pub(super) fn run(&self, count: usize, task: Task<'_>) -> bool {
        if self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        let wanted = self.helpers.len().min(count.saturating_sub(1));
        let task: *const (dyn Fn(usize) + Sync + '_) = task;
        let call = Call {
            // SAFETY: only the lifetime changes. Nobody touches the task after this function returns:
            // `Opened` waits for all who are inside.
            task: unsafe {
                std::mem::transmute::<
                    *const (dyn Fn(usize) + Sync + '_),
                    *const (dyn Fn(usize) + Sync + 'static),
                >(task)
            },
            count,
            threads: wanted + 1,
        };
        // SAFETY: the gate is closed, nobody is inside, and this call alone has the team.
        unsafe { *self.call.get() = Some(call) };
        for (thread, next) in self.next[..=wanted].iter().enumerate() {
            next.0.store(call.dealt(thread).start, Ordering::Relaxed);
        }
        let number = Gate(self.gate.load(Ordering::Relaxed)).number();
        let gate = Gate::opened(number.wrapping_add(1), wanted);
        // In one order with the looks of those who go to sleep.
        self.gate.store(gate.0, Ordering::SeqCst);
        let opened = Opened(self);
        self.wake(0..2, gate);
        self.work(0, &call);
        drop(opened);
        let panic = self.take_panic();
        self.busy.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        let mut panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
        panic.take()
    }

    /// Runs the tasks that were dealt to a thread, then what is left of the others'.
    fn work(&self, thread: usize, call: &Call) {
        let _member = AsMember::new(thread);
        // SAFETY: this thread is inside, or the caller itself.
        let task = unsafe { &*call.task };
        for from in (thread..call.threads).chain(0..thread) {
            let (next, end) = (&self.next[from].0, call.dealt(from).end);
            while next.load(Ordering::Relaxed) < end {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at < end {
                    task(at);
                }
            }
        }
    }

    /// Wakes those of some helpers who are wanted and asleep.
    fn wake(&self, helpers: Range<usize>, gate: Gate) {
        for helper in helpers.filter(|&helper| gate.wants(helper)) {
            let Helper { thread, asleep } = &self.helpers[helper];
            if asleep.load(Ordering::SeqCst)
                && asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = thread.get()
            {
                thread.unpark();
            }
        }
    }

    /// What a helper's thread does.
    fn help(&self, helper: usize) {
        // Nobody else sets it.
        let _ = self.helpers[helper].thread.set(thread::current());
        let mut last = 0;
        loop {
            let gate = self.next_call(helper, last);
            last = gate.number();
            if gate.wants(helper) {
                self.wake(2 * helper + 2..2 * helper + 4, gate);
                if self.enter(helper, last) {
                    // SAFETY: this thread is inside.
                    if let Some(call) = unsafe { *self.call.get() } {
                        let work = AssertUnwindSafe(|| self.work(helper + 1, &call));
                        if let Err(panic) = catch_unwind(work) {
                            let mut place =
                                self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                            place.get_or_insert(panic);
                        }
                    }
                    self.gate.fetch_sub(1, Ordering::Release);
                }
            }
        }
    }

    /// Waits for another call than the last, awake for a while and then asleep.
    fn next_call(&self, helper: usize, last: u32) -> Gate {
        let look = |ordering| {
            let gate = Gate(self.gate.load(ordering));
            (gate.number() != last).then_some(gate)
        };
        let since = Instant::now();
        while since.elapsed() < AWAKE {
            for _ in 0..LOOKS {
                if let Some(gate) = look(Ordering::Acquire) {
                    return gate;
                }
                spin_loop();
            }
        }
        let asleep = &self.helpers[helper].asleep;
        loop {
            // Before the last look: whoever opens the gate after it sees that.
            asleep.store(true, Ordering::SeqCst);
            if let Some(gate) = look(Ordering::SeqCst) {
                asleep.store(false, Ordering::SeqCst);
                return gate;
            }
            thread::park();
        }
    }

    /// Whether a helper came in, before the gate of that call was closed.
    fn enter(&self, helper: usize, number: u32) -> bool {
        let entered = self
            .gate
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |gate| {
                let gate = Gate(gate);
                (gate.number() == number && gate.wants(helper)).then_some(gate.0 + 1)
            });
        entered.is_ok()
    }
}

impl Call {
    /// The tasks that a thread has.
    const fn dealt(&self, thread: usize) -> Range<usize> {
        self.first(thread)..self.first(thread + 1)
    }

    const fn first(&self, thread: usize) -> usize {
        let (each, more) = (self.count / self.threads, self.count % self.threads);
        thread * each + if thread < more { thread } else { more }
    }
}

/// An open gate: dropped, also by a panic, it is closed, and nobody is inside.
struct Opened<'a>(&'a Team);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let gate = &self.0.gate;
        gate.fetch_and(!Gate::OPEN, Ordering::Relaxed);
        let mut looks = 0_u32;
        while Gate(gate.load(Ordering::Acquire)).inside() > 0 {
            looks += 1;
            // A thread that was taken off its processor within a task may need this one.
            match looks % 1024 {
                0 => thread::yield_now(),
                _ => spin_loop(),
            }
        }
        if thread::panicking() {
            // The caller's own is the one that is told.
            self.0.take_panic();
            self.0.busy.store(false, Ordering::Release);
        }
    }
}

/// This thread's number within a call, until it is dropped.
struct AsMember(Option<usize>);

impl AsMember {
    fn new(thread: usize) -> Self {
        Self(MEMBER.replace(Some(thread)))
    }
}

impl Drop for AsMember {
    fn drop(&mut self) {
        MEMBER.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::panic;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicU8;

    use super::*;

    fn seen(count: usize) -> Vec<AtomicU8> {
        (0..count).map(|_| AtomicU8::new(0)).collect()
    }

    fn all_once(seen: &[AtomicU8]) -> bool {
        seen.iter().all(|n| n.load(Ordering::Relaxed) == 1)
    }

    #[test]
    fn every_task_runs_once_however_many_there_are() {
        for helpers in [0, 1, 2, 7] {
            let team = Team::start(helpers).unwrap();
            for count in (0..40).chain([1000]) {
                let seen = seen(count);
                let done = team.run(count, &|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done && all_once(&seen), "{helpers} {count}");
            }
        }
    }

    /// All threads of a team in one call: each task waits until the others are running.
    #[test]
    fn threads_that_sleep_are_woken_and_have_numbers_of_their_own() {
        const HELPERS: usize = 6;
        let team = Team::start(HELPERS).unwrap();
        for _ in 0..3 {
            while !team.helpers.iter().all(|h| h.asleep.load(Ordering::SeqCst)) {
                thread::yield_now();
            }
            let (met, seen) = (Barrier::new(HELPERS + 1), seen(HELPERS + 1));
            team.run(HELPERS + 1, &|_| {
                met.wait();
                seen[member().unwrap()].fetch_add(1, Ordering::Relaxed);
            });
            assert!(all_once(&seen));
            assert_eq!(member(), None);
        }
    }

    #[test]
    fn one_call_has_the_team_at_a_time_and_lets_it_go() {
        let team = Team::start(1).unwrap();
        let within = team.run(1, &|_| assert!(!team.run(1, &|_| {})));
        assert!(within && team.run(1, &|_| {}));
    }

    #[test]
    fn a_panic_is_the_callers_and_the_team_goes_on() {
        let team = Team::start(2).unwrap();
        for culprit in 0..3 {
            let met = Barrier::new(3);
            let call = || {
                team.run(3, &|_| {
                    met.wait();
                    assert_ne!(member(), Some(culprit), "on purpose");
                })
            };
            assert!(panic::catch_unwind(AssertUnwindSafe(call)).is_err());
            assert_eq!(member(), None);
            let seen = seen(9);
            assert!(team.run(9, &|i| {
                seen[i].fetch_add(1, Ordering::Relaxed);
            }));
            assert!(all_once(&seen));
        }
    }

    /// A helper that comes when its call is over touches nothing of it, nor of the next.
    #[test]
    fn nobody_comes_in_once_the_gate_is_closed() {
        let team = Team::start(1).unwrap();
        let number = || Gate(team.gate.load(Ordering::SeqCst)).number();
        team.run(2, &|_| {});
        assert!(!team.enter(0, number()));
        team.run(2, &|_| assert!(!team.enter(0, number().wrapping_sub(1))));
    }

    #[test]
    fn tasks_are_dealt_out_in_runs() {
        let task: Task<'_> = &|_| {};
        let task: *const (dyn Fn(usize) + Sync) = task;
        for (count, threads) in [(1, 1), (7, 3), (16, 16), (3, 2), (1000, 7)] {
            let call = Call {
                task,
                count,
                threads,
            };
            let mut end = 0;
            for dealt in (0..threads).map(|thread| call.dealt(thread)) {
                assert!(dealt.start == end && dealt.len().abs_diff(count / threads) < 2);
                end = dealt.end;
            }
            assert_eq!(end, count);
        }
    }
}
