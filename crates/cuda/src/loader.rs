//! The loader of libraries.

/// What the loader of libraries said: libloading's own message is only that it failed.
pub(crate) fn loader_said(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_said_names_the_library() {
        let name = "libno-such-library-of-swiglu.so.1";
        // SAFETY: there is no such library.
        let error = unsafe { libloading::Library::new(name) }.unwrap_err();
        let said = loader_said(&error);
        assert!(cfg!(windows) || said.contains(name), "{said}");
    }
}
