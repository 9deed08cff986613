use swiglu_core::Error as CoreError;

use super::driver::Grid;
use crate::error::Result;

/// From so many threads on, blocks are large: the device starts a block in 1.2 ns, which with small
/// ones is more than their memory takes. Fewer threads are better spread in small blocks.
pub(crate) const MANY: u32 = 1 << 17;
const THREADS: u32 = 512;
const FEW_THREADS: u32 = 128;

/// How a call is launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchOptions {
    /// Programmatic dependent launch: the kernel may start while the one before it in the stream
    /// runs its last blocks, and waits for that one's end before it loads. Takes half a microsecond
    /// off a small launch. Ignored below compute capability 9.0.
    pub programmatic: bool,
    /// Threads of a block, a multiple of 32 up to 1024; chosen by size if `None`.
    pub threads: Option<u32>,
}

impl LaunchOptions {
    /// An ordinary launch, as by default.
    pub const fn ordinary() -> Self {
        Self {
            programmatic: false,
            threads: None,
        }
    }

    /// With programmatic dependent launch.
    pub const fn programmatic() -> Self {
        Self {
            programmatic: true,
            ..Self::ordinary()
        }
    }

    /// With blocks of this many threads.
    #[must_use]
    pub const fn with_threads(self, threads: u32) -> Self {
        Self {
            threads: Some(threads),
            ..self
        }
    }

    /// With blocks of this many threads, where the caller has not chosen.
    pub(crate) fn or_threads(self, threads: Option<u32>) -> Self {
        Self {
            threads: self.threads.or(threads),
            ..self
        }
    }

    /// For a kernel whose blocks have no more threads than this.
    pub(crate) fn at_most(self, most: u32) -> Self {
        let fitting = |threads| is_block(threads).then_some(most.min(threads));
        Self {
            threads: self.threads.map(|n| fitting(n).unwrap_or(n)),
            ..self
        }
    }

    /// Threads of a block of a launch of this many threads.
    pub(crate) fn block(self, threads: u32) -> u32 {
        self.threads
            .unwrap_or(if threads < MANY { FEW_THREADS } else { THREADS })
    }

    /// Enough blocks for this many threads, on a device that `overlaps` launches or does not.
    pub(crate) fn grid(self, threads: u32, overlaps: bool) -> Result<Grid> {
        let block = self.block(threads);
        if !is_block(block) {
            let expected = "a multiple of 32 up to 1024";
            return Err(CoreError::argument("threads", expected, block).into());
        }
        Ok(Grid {
            blocks: [threads.div_ceil(block), 1],
            threads: block,
            shared: 0,
            programmatic: self.programmatic && overlaps,
        })
    }
}

const fn is_block(threads: u32) -> bool {
    threads > 0 && threads <= 1024 && threads.is_multiple_of(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_grow_with_the_call_and_cover_it() {
        let grid = |threads| LaunchOptions::ordinary().grid(threads, true).unwrap();
        assert_eq!((grid(1).blocks, grid(1).threads), ([1, 1], 128));
        assert_eq!(grid(MANY - 1).threads, 128);
        assert_eq!((grid(MANY).blocks, grid(MANY).threads), ([256, 1], 512));
        assert_eq!(grid(129).blocks, [2, 1]);
    }

    #[test]
    fn programmatic_launches_need_a_device_that_overlaps_them() {
        let programmatic = |overlaps| {
            let grid = LaunchOptions::programmatic().grid(1, overlaps);
            grid.unwrap().programmatic
        };
        assert!(programmatic(true) && !programmatic(false));
    }

    #[test]
    fn odd_blocks_are_refused() {
        for threads in [0, 33, 1056] {
            let options = LaunchOptions::ordinary().with_threads(threads);
            assert!(options.grid(64, false).is_err(), "{threads}");
            assert!(options.at_most(32).grid(64, false).is_err(), "{threads}");
        }
    }

    #[test]
    fn a_kernel_with_smaller_blocks_has_the_largest_that_it_can() {
        for (threads, block) in [(1024, 512), (512, 512), (64, 64)] {
            let options = LaunchOptions::ordinary().with_threads(threads).at_most(512);
            assert_eq!(options.block(1), block);
        }
        assert_eq!(LaunchOptions::ordinary().at_most(512).threads, None);
    }
}
