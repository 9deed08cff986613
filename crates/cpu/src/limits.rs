//! What this machine allows at best, to be measured in the same run as a kernel and set beside it.
//!
//! ```
//! use swiglu_cpu::limits::{Pattern, Traffic};
//! // Both halves of 512 rows of 3072 f32 read, and as many results written.
//! let mut traffic = Traffic::new(Pattern::TwoReadsOneWrite, 512 * 3 * 3072 * 4);
//! let rate = traffic.rate(3);
//! assert!(rate > 0.0);
//! ```

use std::hint::black_box;
use std::time::Instant;

use crate::buffer::ask_for_huge_pages;
use crate::simd::tiles::{self, Ready};
use crate::simd::{self, DotKernel, Dots, Kernel, LANES, Simd};
use crate::tasks::{self, Shared};
use crate::{Error, InstructionSet, cache};

/// How memory is gone through, by each thread of the current rayon pool in a part of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Four streams are read, from huge pages as weights are: a matmul of one row.
    Read,
    /// Two streams are read and one is written with ordinary stores: an activation within caches.
    TwoReadsOneWrite,
    /// The same with stores past the caches: an activation beyond them.
    TwoReadsOneStream,
}

/// Buffers to go through in a [`Pattern`].
#[derive(Debug)]
pub struct Traffic {
    pattern: Pattern,
    set: InstructionSet,
    from: Vec<Line>,
    to: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Line([f32; LANES]);

impl Traffic {
    /// Buffers that together have about this many bytes, on the fastest instruction set.
    pub fn new(pattern: Pattern, bytes: usize) -> Self {
        let lines = |bytes: usize| {
            let count = bytes.div_ceil(size_of::<Line>());
            let mut lines = Vec::with_capacity(count);
            if pattern == Pattern::Read {
                ask_for_huge_pages(lines.spare_capacity_mut());
            }
            // Any numbers but subnormal ones.
            lines.resize(count, Line([1.0; LANES]));
            lines
        };
        let (from, to) = match pattern {
            Pattern::Read => (bytes, 0),
            Pattern::TwoReadsOneWrite | Pattern::TwoReadsOneStream => (bytes / 3 * 2, bytes / 3),
        };
        Self {
            pattern,
            set: InstructionSet::detect(),
            from: lines(from),
            to: lines(to),
        }
    }

    /// Goes through the buffers once; the bytes that were read and written.
    pub fn run(&mut self) -> usize {
        match self.pattern {
            Pattern::Read => self.read(),
            Pattern::TwoReadsOneWrite | Pattern::TwoReadsOneStream => self.read_and_write(),
        }
    }

    /// Each thread reads four streams of its own, some lines of one and then of the next.
    fn read(&self) -> usize {
        let streams = 4 * rayon::current_num_threads();
        let length = self.from.len() / streams;
        rayon::broadcast(|context| {
            let stream = |s| &self.from[(4 * context.index() + s) * length..][..length];
            let [a, b, c, d] = [0, 1, 2, 3].map(|s| stream(s).as_chunks::<RUN>().0);
            let mut bits = [[0_u32; LANES]; RUN];
            for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
                for (i, bits) in bits.iter_mut().enumerate() {
                    for (j, bits) in bits.iter_mut().enumerate() {
                        let [a, b, c, d] = [a, b, c, d].map(|run| run[i].0[j].to_bits());
                        *bits |= a | b | c | d;
                    }
                }
            }
            black_box(bits);
        });
        length / RUN * RUN * streams * size_of::<Line>()
    }

    fn read_and_write(&mut self) -> usize {
        // Parts as an activation's tasks have them.
        let length = self.from.len() / 2;
        let parts = length.div_ceil(PART);
        let to = Shared(self.to.as_mut_ptr());
        tasks::for_each(parts, false, &|part| {
            let range = part * PART..length.min((part + 1) * PART);
            let pass = Pass {
                past_caches: self.pattern == Pattern::TwoReadsOneStream,
                from: [0, length].map(|stream| &self.from[stream..][range.clone()]),
                // SAFETY: parts lie within the results' length and are disjoint.
                to: unsafe { to.get().add(range.start) },
            };
            // SAFETY: the machine has what it detects.
            unsafe { simd::dispatch(self.set, pass) }
        });
        3 * length * size_of::<Line>()
    }

    /// Bytes a second: the median of so many passes after one that warms up.
    pub fn rate(&mut self, passes: usize) -> f64 {
        self.run();
        median((0..passes.max(1)).map(|_| {
            let start = Instant::now();
            self.run() as f64 / start.elapsed().as_secs_f64()
        }))
    }
}

/// Lines of each stream in a part.
const PART: usize = 1024;

/// Lines of a stream that are read together.
const RUN: usize = 4;

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Pass<'a> {
    past_caches: bool,
    from: [&'a [Line]; 2],
    to: *mut Line,
}

// SAFETY: a pass alone writes its part.
unsafe impl Send for Pass<'_> {}

impl Kernel for Pass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [a, b] = self.from;
        // SAFETY: a line has LANES elements; so below.
        let load = |line: &Line| unsafe { s.load_f32(line.0.as_ptr()) };
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let product = s.mul(load(a), load(b));
            // SAFETY: the part of the results is as long as its streams.
            unsafe {
                let to = self.to.add(i).cast();
                if self.past_caches {
                    s.stream_f32(to, product);
                } else {
                    s.store_f32(to, product);
                }
            }
        }
        if self.past_caches {
            simd::fence();
        }
    }
}

/// Fused multiply-adds of f32 in registers on every thread of the current rayon pool: operations a
/// second, two each, over about this many of them.
///
/// # Errors
/// [`Error::Unavailable`] where the machine lacks the instruction set.
pub fn multiply_add_rate(set: InstructionSet, operations: usize) -> Result<f64, Error> {
    if !set.available() {
        return Err(Error::Unavailable(set));
    }
    // More sums than a unit has cycles of latency, and no more than there are registers for.
    Ok(match set {
        InstructionSet::Avx512 | InstructionSet::Avx512Bf16 | InstructionSet::Amx => {
            multiply_adds::<12>(set, operations)
        }
        _ => multiply_adds::<6>(set, operations),
    })
}

/// Multiplications and additions of bf16 on the registers of a matrix unit, or by dot products, on
/// every thread of the current rayon pool: operations a second, over about this many of them. None
/// where the set has neither in hardware.
///
/// # Errors
/// [`Error::Unavailable`] where the machine lacks the instruction set.
pub fn matrix_unit_rate(set: InstructionSet, operations: usize) -> Result<Option<f64>, Error> {
    if !set.available() {
        return Err(Error::Unavailable(set));
    }
    match set {
        InstructionSet::Amx => Ok(Some(tile_products(set, operations))),
        InstructionSet::Avx512Bf16 => Ok(Some(dot_products(set, operations))),
        _ => Ok(None),
    }
}

fn tile_products(set: InstructionSet, operations: usize) -> f64 {
    let each = 2 * tiles::SIDE * tiles::TILE;
    let count = operations.div_ceil(each * rayon::current_num_threads());
    let start = Instant::now();
    // SAFETY: the caller has asked whether the machine has `set`, and that has tiles.
    let done = rayon::broadcast(|_| unsafe { Ready::new(set) }.products(count));
    let seconds = start.elapsed().as_secs_f64();
    (done.iter().sum::<usize>() * each) as f64 / seconds
}

fn dot_products(set: InstructionSet, operations: usize) -> f64 {
    let threads = rayon::current_num_threads();
    let rounds = operations.div_ceil(threads * 4 * LANES * DotProducts::SUMS);
    let start = Instant::now();
    // SAFETY: the caller has asked whether the machine has `set`.
    rayon::broadcast(|_| unsafe { simd::dispatch_dots(set, DotProducts(rounds)) });
    let done = threads * rounds * 4 * LANES * DotProducts::SUMS;
    done as f64 / start.elapsed().as_secs_f64()
}

fn multiply_adds<const SUMS: usize>(set: InstructionSet, operations: usize) -> f64 {
    let threads = rayon::current_num_threads();
    let rounds = operations.div_ceil(threads * 2 * LANES * SUMS);
    let start = Instant::now();
    // SAFETY: the caller has asked whether the machine has `set`.
    rayon::broadcast(|_| unsafe { simd::dispatch(set, MultiplyAdds::<SUMS>(rounds)) });
    let done = threads * rounds * 2 * LANES * SUMS;
    done as f64 / start.elapsed().as_secs_f64()
}

/// Bytes of the last-level cache that this thread's core shares; 32 MiB where it is not known.
pub fn last_level_cache() -> usize {
    cache::last_level()
}

/// So many rounds of sums side by side.
struct MultiplyAdds<const SUMS: usize>(usize);

impl<const SUMS: usize> Kernel for MultiplyAdds<SUMS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(1.0)));
        let mut sums = [s.splat(black_box(0.0)); SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        black_box(sums.map(|sum| s.highest(s.bits(sum))));
    }
}

/// The same of dot products.
struct DotProducts(usize);

impl DotProducts {
    const SUMS: usize = 12;
}

impl DotKernel for DotProducts {
    #[inline(always)]
    fn run<S: Dots>(self, s: S) {
        let ones = s.splat_u32(black_box(0x3f80_3f80));
        let mut sums = [s.splat(black_box(0.0)); Self::SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.dot(ones, ones, *sum);
            }
        }
        black_box(sums.map(|sum| s.highest(s.bits(sum))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_unit_in_hardware_has_a_rate() {
        for set in InstructionSet::ALL.into_iter().filter(|s| s.available()) {
            let rate = matrix_unit_rate(set, 1 << 24).unwrap();
            let has_one = matches!(set, InstructionSet::Amx | InstructionSet::Avx512Bf16);
            assert_eq!(rate.is_some(), has_one, "{set}");
            assert!(rate.is_none_or(|rate| rate > 0.0), "{set}: {rate:?}");
        }
        let emulated = matrix_unit_rate(InstructionSet::AmxEmulated, 1 << 24);
        assert_eq!(emulated.unwrap(), None);
        if let Some(absent) = InstructionSet::ALL.into_iter().find(|s| !s.available()) {
            assert!(matrix_unit_rate(absent, 1 << 24).is_err());
        }
    }
}
