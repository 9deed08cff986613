use std::fmt;

use swiglu_core::Float;

use crate::tasks::Split;
use crate::{InstructionSet, Settings};

/// How an activation runs: a function of its shape and type, the instruction set and the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActivationPlan {
    pub(crate) set: InstructionSet,
    /// Whether results are stored past the caches.
    pub(crate) streamed: bool,
    pub(crate) split: Split,
}

impl ActivationPlan {
    /// The plan for `[T, d]` outputs of this type.
    pub(crate) fn new(
        settings: &Settings,
        set: InstructionSet,
        [rows, d]: [usize; 2],
        float: Float,
    ) -> Self {
        let d = d.max(1);
        Self {
            set,
            // Two elements are read for each that is written.
            streamed: 3 * rows * d * float.size() > settings.stream_bytes,
            split: Split::new([rows, d], settings.inline_outputs),
        }
    }
}

impl fmt::Display for ActivationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.set, self.split)?;
        if self.streamed {
            f.write_str(", stored past the caches")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            stream_bytes: 32 << 20,
            ..Settings::default()
        }
    }

    fn plan(shape: [usize; 2], float: Float) -> ActivationPlan {
        ActivationPlan::new(&settings(), InstructionSet::Avx512, shape, float)
    }

    #[test]
    fn what_no_cache_holds_is_streamed() {
        let most = (32 << 20) / 3 / 2 / 3072;
        assert!(!plan([most, 3072], Float::BF16).streamed);
        assert!(plan([most + 1, 3072], Float::BF16).streamed);
        assert!(plan([most, 3072], Float::F32).streamed);
    }

    #[test]
    fn a_decoded_token_stays_on_the_callers_thread() {
        let one = plan([1, 3072], Float::BF16);
        assert_eq!(one.to_string(), "avx512, 1 task on the caller's thread");
        assert!(one.split.inline && one.split.tasks == 1);
        let many = plan([64, 3072], Float::BF16);
        assert_eq!(many.to_string(), "avx512, 32 tasks of 2 x 3072 in the pool");
    }

    #[test]
    fn no_rows_are_no_tasks() {
        let plan = plan([0, 3072], Float::F16);
        assert!(plan.split.inline && !plan.streamed && plan.split.tasks == 0);
    }

    #[test]
    fn settings_decide() {
        let mut low = settings();
        (low.stream_bytes, low.inline_outputs) = (0, 0);
        let plan = ActivationPlan::new(&low, InstructionSet::Scalar, [1, 1], Float::F32);
        assert!(plan.streamed && !plan.split.inline);
    }
}
