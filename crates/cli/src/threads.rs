//! The threads of the CPU.

use crate::failure::Result;

/// Starts the threads that RAYON_NUM_THREADS asks for. Left to itself the pool starts at its first
/// use, and panics if it cannot.
///
/// # Errors
/// A value that is no number or more than makes sense, or threads that the operating system refuses.
#[cfg(feature = "cpu")]
pub fn start() -> Result<()> {
    use crate::failure::Failure;

    const VARIABLE: &str = "RAYON_NUM_THREADS";
    /// Far more end in an abort, as their stacks take more mappings than a process may have.
    const MOST: usize = 4096;
    let fail = |got: String| {
        let expected = format!("{VARIABLE}: expected from 1 to {MOST} threads");
        Err(Failure::Input(format!("{expected}, got {got}")))
    };
    // 0 and nothing stand for as many as there are cores.
    let asked = std::env::var_os(VARIABLE).filter(|text| !text.is_empty());
    if let Some(text) = asked {
        let number = text.to_str().and_then(|text| text.parse::<usize>().ok());
        if number.is_none_or(|n| n > MOST) {
            return fail(format!("`{}`", text.display()));
        }
    }
    static STARTED: std::sync::Once = std::sync::Once::new();
    let mut started = Ok(());
    STARTED.call_once(|| started = rayon::ThreadPoolBuilder::new().build_global());
    match started {
        Ok(()) => Ok(()),
        Err(error) => fail(format!("an error: {error}")),
    }
}

/// Without the CPU nothing uses its threads.
#[cfg(not(feature = "cpu"))]
pub const fn start() -> Result<()> {
    Ok(())
}
