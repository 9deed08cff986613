//! Files as a caller names them: read without waiting or filling the memory, written whole or not
//! at all, and never one that is being read.

mod identity;
mod output;
mod temporary;

pub use identity::Inputs;
pub use output::OutputFile;
pub use temporary::TemporaryFolder;

/// What is known of the file behind a standard stream.
#[cfg(unix)]
fn metadata_of(stream: &impl std::os::fd::AsFd) -> std::io::Result<std::fs::Metadata> {
    std::fs::File::from(stream.as_fd().try_clone_to_owned()?).metadata()
}

/// The name that stands for standard input or standard output.
pub const STANDARD: &str = "-";
