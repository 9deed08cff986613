use swiglu_core::{GroupedMatmul, Router, WeightFormat};

use crate::skips::tell;
use crate::{Failure, Harness, Size, checks};

/// The environment variable that lists, separated by commas, the platforms whose tests must not
/// be skipped.
pub const REQUIRE: &str = "SWIGLU_REQUIRE";

/// A backend with every capability, each of which may refuse: what the whole suite runs on.
pub trait FullBackend: Router + GroupedMatmul {}

impl<B: Router + GroupedMatmul> FullBackend for B {}

/// A function of [`checks`], for one type of backend.
pub type Check<B> = fn(&Harness<B>) -> Result<(), Failure>;

/// A suite whose backend's type is erased, so that a static can hold it.
pub trait AnySuite: Send + Sync {
    /// Runs the check of that name.
    ///
    /// # Errors
    /// What the check found, or that there is no such check.
    fn check(&self, name: &str) -> Result<(), Failure>;
}

macro_rules! table {
    ($($check:ident)*) => {
        &[$((stringify!($check), checks::$check::<B> as Check<B>)),*]
    };
}

impl<B: FullBackend> Harness<B> {
    /// Every check by its name.
    pub fn checks() -> &'static [(&'static str, Check<B>)] {
        crate::__for_each_check!(table)
    }
}

impl<B: FullBackend> AnySuite for Harness<B> {
    fn check(&self, name: &str) -> Result<(), Failure> {
        match Self::checks().iter().find(|(n, _)| *n == name) {
            Some((_, check)) => check(self),
            None => Err(Failure::new(format!("there is no check `{name}`"))),
        }
    }
}

/// Opens a backend for the tests that [`crate::suite!`] makes. `regressions` is the file that
/// keeps the seeds of random cases that failed.
///
/// # Errors
/// The reason that the constructor gives.
pub fn open<B: FullBackend>(
    backend: impl FnOnce() -> Result<B, String>,
    regressions: &'static str,
) -> Result<Box<dyn AnySuite>, String> {
    let harness = Harness::new(backend()?, Size::from_env()).telling_skips();
    Ok(Box::new(harness.with_regressions(regressions)))
}

/// Runs one check, as a test: skips by name where the platform could not be opened.
///
/// # Panics
/// Where the check fails, or the platform is required and could not be opened.
pub fn run(platform: &str, suite: &Result<Box<dyn AnySuite>, String>, check: &str) {
    match suite {
        Ok(suite) => {
            if let Err(failure) = suite.check(check) {
                panic!("{platform}: {check}: {failure}");
            }
        }
        Err(reason) => may_skip(platform, reason, check),
    }
}

/// The test that [`crate::complete!`] makes.
///
/// # Panics
/// Where the backend lacks something, or the platform is required and could not be opened.
pub fn assert_complete<B: FullBackend>(
    platform: &str,
    backend: impl FnOnce() -> Result<B, String>,
    lacking: &[WeightFormat],
) {
    match backend() {
        Ok(backend) => {
            let harness = Harness::new(backend, Size::Quick);
            if let Err(failure) = checks::everything_is_supported(&harness, lacking) {
                panic!("{platform}: {failure}");
            }
        }
        Err(reason) => may_skip(platform, &reason, "everything_is_supported"),
    }
}

/// Skips by name where the platform is not required: for tests beside the suite.
///
/// # Panics
/// Where it is.
pub fn may_skip(platform: &str, reason: &str, check: &str) {
    let list = std::env::var(REQUIRE).unwrap_or_default();
    assert!(
        !required(platform, &list),
        "{platform} is required by {REQUIRE} but cannot run: {reason}"
    );
    tell(platform, reason, check);
}

fn required(platform: &str, list: &str) -> bool {
    list.split(',').any(|name| name.trim() == platform)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_required_by_its_whole_name() {
        assert!(required("cpu", "wgpu, cpu"));
        assert!(!required("cpu", "cpu2") && !required("cpu", ""));
    }

    #[test]
    fn a_skip_is_no_failure_and_an_unknown_check_is() {
        run("absent", &Err("no device".to_owned()), "special_pairs");
        let open = open(|| Ok(swiglu_core::reference::Reference), "unused.txt");
        assert!(open.unwrap().check("nothing").is_err());
    }
}
